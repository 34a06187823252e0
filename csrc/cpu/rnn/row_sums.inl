// What the stages of a variant need of whole rows: sums over a worker's part of a row, and the vectors of a layer's
// units in the compute type.
#pragma once
#include <type_traits>

#include "cells/policies/stages.h"
#include "cpu/rnn/schedule.inl"

namespace fastrnn {
namespace {

// The vectors of a variant's stages, [blocks * W] each: p_i, p_f, p_o; the gains of both products; of c, gain and
// bias.
template <int G>
inline constexpr int kStageVectors = 3 + 2 * G + 2;
template <int G>
struct StageVector {
  static constexpr int kPeephole = 0, kNormIh = 3, kNormHh = 3 + G, kNormC = 3 + 2 * G, kNormCBias = 4 + 2 * G;
};

template <class T>
FASTRNN_INLINE typename Simd<T>::V first_lanes(typename Simd<T>::V v, int lanes) {
  if (lanes >= Simd<T>::W) return v;
  alignas(64) T all[Simd<T>::W];
  Simd<T>::store(all, v);
  return Simd<T>::load_n(all, lanes);
}

template <class T>
int64_t units_in(const Panels<T>& units, Range blocks) {
  return blocks.begin >= blocks.end ? 0 : min_of(units.length, blocks.end * Simd<T>::W) - blocks.begin * Simd<T>::W;
}

// The mean of the values value(block, k), k < kPerUnit, of some blocks, and their squared distances from it. Four
// sums at a time, so that none waits for the one before it.
template <int kPerUnit, class T, class F>
RowPart<T> part_of(const Panels<T>& units, Range blocks, F&& value) {
  using V = typename Simd<T>::V;
  const T count = static_cast<T>(units_in(units, blocks) * kPerUnit);
  if (count == 0) return {0, 0};
  constexpr int kBlocks = kPerUnit > 1 ? 1 : 4, kSums = kPerUnit * kBlocks;
  // Blocks whose lanes are all units, in groups of kBlocks.
  const int64_t whole = min_of(blocks.end, units.length / Simd<T>::W);
  const int64_t grouped = blocks.begin + max_of<int64_t>(0, whole - blocks.begin) / kBlocks * kBlocks;
  // Of the values, or of their squared distances from `middle`.
  const auto sum = [&](const V& middle, auto squares) {
    const auto term = [&](int64_t block, int k) {
      const V v = value(block, k);
      return squares ? (v - middle) * (v - middle) : v;
    };
    V sums[kSums] = {};
    for (int64_t block = blocks.begin; block < grouped; block += kBlocks) {
#pragma GCC unroll 4
      for (int k = 0; k < kSums; ++k) sums[k] += term(block + k / kPerUnit, k % kPerUnit);
    }
    for (int64_t block = grouped; block < blocks.end; ++block) {
      for (int k = 0; k < kPerUnit; ++k) sums[k] += first_lanes<T>(term(block, k), units.lanes(block));
    }
    for (int k = 1; k < kSums; ++k) sums[0] += sums[k];
    return sum_lanes<T>(sums[0]);
  };
  const T mean = sum(V{}, std::false_type()) / count;
  return {mean, sum(Simd<T>::broadcast(mean), std::true_type())};
}

// Vectors of a direction from natural ones; where there is none, nothing is written.
template <class T, int G>
void load_stage_vectors(const DirectionWeights& weights, const LayerShape& s, const Panels<T>& units, Range blocks,
                        T* const* to) {
  using At = StageVector<G>;
  const auto load = [&](const void* from, int first, int count) {
    for (int k = 0; from && k < count; ++k) {
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t at = block * Simd<T>::W;
        Simd<T>::store(to[first + k] + at, load_as<T>(from, k * s.H + at, units.lanes(block), s.dtype));
      }
    }
  };
  load(weights.peephole, At::kPeephole, 3);
  load(weights.norm_ih, At::kNormIh, G);
  load(weights.norm_hh, At::kNormHh, G);
  load(weights.norm_c, At::kNormC, 1);
  load(weights.norm_c_bias, At::kNormCBias, 1);
}

}  // namespace
}  // namespace fastrnn
