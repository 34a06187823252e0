// What the stages of a variant need of whole rows: sums over a worker's part of a row, and the vectors of a layer's
// units in the compute type.
#pragma once
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

// The mean of the values value(block, k), k < per_unit, of some blocks, and their squared distances from it.
template <class T, class F>
RowPart<T> part_of(const Panels<T>& units, Range blocks, int per_unit, F&& value) {
  using V = typename Simd<T>::V;
  const T count = static_cast<T>(units_in(units, blocks) * per_unit);
  if (count == 0) return {0, 0};
  // Of the values, or of their squared distances from `middle`.
  const auto sum = [&](const V& middle, bool squares) {
    V sums[2] = {};
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      for (int k = 0; k < per_unit; ++k) {
        V v = value(block, k);
        if (squares) v = (v - middle) * (v - middle);
        sums[k & 1] += first_lanes<T>(v, units.lanes(block));
      }
    }
    return sum_lanes<T>(sums[0] + sums[1]);
  };
  const T mean = sum(V{}, false) / count;
  return {mean, sum(Simd<T>::broadcast(mean), true)};
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
