// Steps of one row of a layer of few units, on weights packed once: all of a step in one loop, its values in
// registers or in the first-level cache, for whoever waits for each step (a stream of samples). Reads gate panels
// (panels.inl).
//
// A step of 16 units is a few hundred operations in one chain: product, gates, cell, state, and back. So what counts
// is the latency of that chain. The input's part of the sums comes first, since it waits for nobody; the state's is
// in chains that are added at the end; and the activations are QuickMath's. Costs about 120 cycles plus G*H*H/2W of
// product; Forward, which is built for many rows, takes 60 to 90 more.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/product/panels.inl"
#include "cpu/simd/quick_math.h"

namespace fastrnn {
namespace {

// The most units of such a layer: from there on the product is what takes the time.
constexpr int64_t kOneRowUnits = 64;

// Whether a layer of one row is one of these.
inline bool few_units(const LayerShape& s) {
  return s.dtype == Dtype::kFloat && s.H <= kOneRowUnits && s.P == 0 && s.D == 1 && !s.variant.any();
}

// The packed weights of a layer, as PackedWeights lays them out.
struct OneRowWeights {
  const float *w_ih, *w_hh, *bias, *bias_rec;
};

template <template <class> class CellOf>
struct OneRow {
  using S = Simd<float>;
  using V = S::V;
  using C = CellOf<QuickMath>;
  using Weights = PackedWeights<float, CellOf, NaturalOperand<float>>;
  static constexpr int W = S::W, G = C::kGates;
  // Sums of a gate that are added at the end, each of every so-manieth unit.
  static constexpr int kChains = kAccumulators == 24 || G == 1 ? 4 : 2;

  // h[0]: the state, h[1]: as much room, both [padded H]; c (null without a cell state) likewise. x
  // (steps, I) with rows x_stride apart, y (steps, H). `at` says which of the two has the state, and so does what is
  // returned: a caller who keeps both need not copy it.
  static int run(const OneRowWeights& weights, int64_t I, int64_t H, float* const (&h)[2], int at, float* c,
                 const float* x, int64_t x_stride, float* y, int64_t steps) {
    const Panels<float> units{H, Weights::kUnits};
    const Lie last = Weights::lie_of(units, units.count() - 1);
    return last.close ? run<true>(last, weights, I, H, h, at, c, x, x_stride, y, steps)
                      : run<false>(last, weights, I, H, h, at, c, x, x_stride, y, steps);
  }

 private:
  using Lie = typename Weights::Lie;

  // kClose: whether the gates of the last block lie close, see panels.inl. A register of one of them then has, behind
  // the block's units, what is the next gate's or the next row's: of units that there are not.
  template <bool kClose>
  static int run(const Lie& last, const OneRowWeights& weights, int64_t I, int64_t H, float* const (&h)[2], int at,
                 float* c, const float* x, int64_t x_stride, float* y, int64_t steps) {
    const int blocks = static_cast<int>(ceil_div(H, W));
    if (blocks == 1) {  // which reads all of h before it writes
      for (int64_t t = 0; t < steps; ++t, x += x_stride, y += H) {
        unit_block<kClose>(last, weights, I, H, 0, 1, h[at], c, x, h[at]);
        write(h[at], y, H);
      }
      return at;
    }
    for (int64_t t = 0; t < steps; ++t, x += x_stride, y += H, at ^= 1) {
      for (int u = 0; u < blocks - kClose; ++u) {
        unit_block<false>(last, weights, I, H, u, blocks, h[at], c, x, h[at ^ 1]);
      }
      if constexpr (kClose) unit_block<true>(last, weights, I, H, blocks - 1, blocks, h[at], c, x, h[at ^ 1]);
      write(h[at ^ 1], y, H);
    }
    return at;
  }

  static FASTRNN_INLINE void write(const float* h, float* y, int64_t H) {
    int64_t i = 0;
    for (; i + W <= H; i += W) S::store(y + i, S::load(h + i));
    if (i < H) S::store_n(y + i, S::load(h + i), static_cast<int>(H - i));
  }

  // Where gate g's weights of a block of units begin in panels of K rows, and the distance from row to row.
  template <bool kClose>
  static FASTRNN_INLINE const float* gate(const Lie& last, const float* panels, int64_t K, int u, int blocks, int g,
                                          int64_t& row) {
    if constexpr (G == 1) {
      const int first = u / Weights::kUnits * Weights::kUnits;
      const int together = blocks - first < Weights::kUnits ? blocks - first : Weights::kUnits;
      row = together * W;
      return panels + first * W * K + (u - first) * W;
    } else {
      constexpr int kOfPart = Weights::kPartGates;
      row = (kClose ? last.vectors : kOfPart) * W;
      return panels + u * (G * W * K) + g / kOfPart * (row * K) + g % kOfPart * (kClose ? last.gate_step : W);
    }
  }

  // sums[g] += values (K) . gate g's weights, in chains.
  template <bool kClose>
  static FASTRNN_INLINE void add(const Lie& last, V (&sums)[G][kChains], const float* panels, int64_t K, int u,
                                 int blocks, const float* values) {
    const float* w[G];
    int64_t row = 0;
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) w[g] = gate<kClose>(last, panels, K, u, blocks, g, row);
    const auto term = [&](int64_t k, int chain) __attribute__((always_inline)) {
      const V value = S::broadcast(values[k]);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) sums[g][chain] += S::load(w[g] + k * row) * value;
    };
    int64_t k = 0;
#pragma GCC unroll 1
    for (; k + 4 <= K; k += 4) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) term(k + j, j % kChains);
    }
    if (k < K) term(k, 0);
    if (k + 1 < K) term(k + 1, 1 % kChains);
    if (k + 2 < K) term(k + 2, 2 % kChains);
  }

  template <bool kClose>
  static FASTRNN_INLINE void unit_block(const Lie& last, const OneRowWeights& weights, int64_t I, int64_t H, int u,
                                        int blocks, const float* h_in, float* c, const float* x, float* h_out) {
    V sums[G][kChains] = {}, input{};
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      sums[g][0] = S::load(weights.bias + u * G * W + (kClose ? last.at(0, 1, 0, g) : g * W));
    }
    add<kClose>(last, sums, weights.w_ih, I, u, blocks, x);
    if constexpr (C::kSplit) {
      input = all(sums[G - 1]);
      sums[G - 1][0] = S::load(weights.bias_rec + u * W);
#pragma GCC unroll 4
      for (int j = 1; j < kChains; ++j) sums[G - 1][j] = V{};
    }
    add<kClose>(last, sums, weights.w_hh, H, u, blocks, h_in);
    V pre[G], saved[C::kSaved ? C::kSaved : 1], rec{}, h_prev{}, c_prev{}, c_next, h_next;
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) pre[g] = all(sums[g]);
    if constexpr (C::kSplit) {
      rec = pre[G - 1];
      pre[G - 1] = input;
      h_prev = S::load(h_in + u * W);
    }
    if constexpr (C::kHasCell) c_prev = S::load(c + u * W);
    C::forward(pre, rec, h_prev, c_prev, saved, c_next, h_next);
    if constexpr (C::kHasCell) S::store(c + u * W, c_next);
    S::store(h_out + u * W, h_next);
  }

  static FASTRNN_INLINE V all(const V (&sums)[kChains]) {
    if constexpr (kChains == 4) return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return sums[0] + sums[1];
  }
};

}  // namespace
}  // namespace fastrnn
