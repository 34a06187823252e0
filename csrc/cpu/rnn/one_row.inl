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

// The most units of such a layer: from there on the product is what takes the time. With many inputs it is from fewer
// units on, as the inputs of several steps are multiplied together elsewhere: 100 steps of an LSTM of 64 units take
// 70 us here and 54 there with 64 inputs, and 36 and 41 with one.
constexpr int64_t kOneRowUnits = 64, kUnitsOfManyInputs = 48, kFewInputs = 16;

// Whether a layer of one row is one of these.
inline bool few_units(const LayerShape& s) {
  const int64_t most = s.I <= kFewInputs ? kOneRowUnits : kUnitsOfManyInputs;
  return s.dtype == Dtype::kFloat && s.H <= most && s.P == 0 && s.D == 1 && !s.variant.any();
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
  // Sums of a gate that are added at the end, each of every so-manieth unit, of so many blocks at a time.
  static constexpr int chains_of(int blocks) { return blocks == 1 && (kAccumulators == 24 || G == 1) ? 4 : 2; }
  // Whether the blocks are few enough to be written out one by one.
  static constexpr bool kWritten = kAccumulators == 24 && kOneRowUnits <= 4 * W;  // up to three of them are
  // Blocks of units at a time: the registers hold the sums of so many, and their activations wait side by side.
  static constexpr int kTogether = kWritten ? 2 : 1;

  // h[0]: the state, h[1]: as much room, both [padded H]; c (null without a cell state) likewise. x
  // (steps, I) with rows x_stride apart, y (steps, H). `at` says which of the two has the state, and so does what is
  // returned: a caller who keeps both need not copy it.
  static int run(const OneRowWeights& weights, int64_t I, int64_t H, float* const (&h)[2], int at, float* c,
                 const float* x, int64_t x_stride, float* y, int64_t steps) {
    return closes(H) ? run<true, false>(weights, I, H, h, at, c, x, x_stride, y, steps)
                     : run<false, false>(weights, I, H, h, at, c, x, x_stride, y, steps);
  }

  // Whether the gates of the last block lie close, see panels.inl. A register of one of them then has, behind the
  // block's units, what is the next gate's or the next row's: of units that there are not.
  static bool closes(int64_t H) { return last_of(H).close; }

  // The same where it is known whether they do, in line with the caller and with weights of the caller's own kind.
  // kAlone: calls of a single step are likely. Such a step waits for whatever stands before its first load, so it is
  // no loop, for which a compiler would first lay out what the steps have in common.
  template <bool kClose, bool kAlone, class OfWeights>
  static FASTRNN_INLINE int run(const OfWeights& weights, int64_t I, int64_t H, float* const (&h)[2], int at,
                                float* c, const float* x, int64_t x_stride, float* y, int64_t steps) {
    const auto of_blocks = [&]<int N>() __attribute__((always_inline)) {
      constexpr bool kInPlace = N && N <= kTogether;  // all of h is read before any of it is written
      const auto one = [&]() __attribute__((always_inline)) {
        float* const to = h[kInPlace ? at : at ^ 1];
        step<kClose, N>(weights, I, H, h[at], c, x, to);
        write(to, y, H);
        if constexpr (!kInPlace) at ^= 1;
      };
      if (kAlone && steps == 1) {
        one();
        return at;
      }
      for (int64_t t = 0; t < steps; ++t, x += x_stride, y += H) one();
      return at;
    };
    if constexpr (kWritten) {
      // From there on the weights come from the L2 cache, and two blocks at a time are no faster: LSTM 3% slower.
      if (H > 3 * W) return of_blocks.template operator()<0>();
      if (H > 2 * W) return of_blocks.template operator()<3>();
      if (H > W) return of_blocks.template operator()<2>();
      return of_blocks.template operator()<1>();
    } else {
      return H > W ? of_blocks.template operator()<0>() : of_blocks.template operator()<1>();
    }
  }

 private:
  using Lie = typename Weights::Lie;

  static FASTRNN_INLINE Lie last_of(int64_t H) {
    const Panels<float> units{H, Weights::kUnits};
    return Weights::lie_of(units, units.count() - 1);
  }

  static FASTRNN_INLINE void write(const float* h, float* y, int64_t H) {
    int64_t i = 0;
    for (; i + W <= H; i += W) S::store(y + i, S::load(h + i));
    if (i < H) S::store_n(y + i, S::load(h + i), static_cast<int>(H - i));
  }

  // A step of N blocks of units, or, N = 0, of as many as there are.
  template <bool kClose, int N, class OfWeights>
  static FASTRNN_INLINE void step(const OfWeights& weights, int64_t I, int64_t H, const float* h_in, float* c,
                                  const float* x, float* h_out) {
    const Lie last = kClose ? last_of(H) : Lie{};
    if constexpr (N == 0) {
      const int blocks = static_cast<int>(ceil_div(H, W));
      for (int u = 0; u < blocks - kClose; ++u) {
        unit_blocks<false, 1>(last, weights, I, H, u, blocks, h_in, c, x, h_out);
      }
      if constexpr (kClose) unit_blocks<true, 1>(last, weights, I, H, blocks - 1, blocks, h_in, c, x, h_out);
    } else {
      constexpr int kFirst = N < kTogether ? N : kTogether;
      unit_blocks<kClose && N == kFirst, kFirst>(last, weights, I, H, 0, N, h_in, c, x, h_out);
      if constexpr (N > kFirst) {
        unit_blocks<kClose, N - kFirst>(last, weights, I, H, kFirst, N, h_in, c, x, h_out);
      }
    }
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

  // sums[n][g] += values (K) . the weights of block u + n's gate g, in chains.
  template <bool kClose, int N>
  static FASTRNN_INLINE void add(const Lie& last, V (&sums)[N][G][chains_of(N)], const float* panels, int64_t K,
                                 int u, int blocks, const float* values) {
    const float* w[N][G];
    int64_t row[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        w[n][g] = n + 1 == N ? gate<kClose>(last, panels, K, u + n, blocks, g, row[n])
                             : gate<false>(last, panels, K, u + n, blocks, g, row[n]);
      }
    }
    const auto term = [&](int64_t k, int chain) __attribute__((always_inline)) {
      const V value = S::broadcast(values[k]);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sums[n][g][chain] += S::load(w[n][g] + k * row[n]) * value;
      }
    };
    constexpr int kOf = chains_of(N);
    int64_t k = 0;
#pragma GCC unroll 1
    for (; k + 4 <= K; k += 4) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) term(k + j, j % kOf);
    }
    if (k < K) term(k, 0);
    if (k + 1 < K) term(k + 1, 1 % kOf);
    if (k + 2 < K) term(k + 2, 2 % kOf);
  }

  // N blocks from block u on, of which the last may lie close.
  template <bool kClose, int N, class OfWeights>
  static FASTRNN_INLINE void unit_blocks(const Lie& last, const OfWeights& weights, int64_t I, int64_t H, int u,
                                         int blocks, const float* h_in, float* c, const float* x, float* h_out) {
    constexpr int kOf = chains_of(N);
    V sums[N][G][kOf] = {}, input[N] = {}, h_prev[N] = {};
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        const bool close = kClose && n + 1 == N;
        sums[n][g][0] = S::load(weights.bias + (u + n) * G * W + (close ? last.at(0, 1, 0, g) : g * W));
      }
    }
    add<kClose, N>(last, sums, weights.w_ih, I, u, blocks, x);
    if constexpr (C::kSplit) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        input[n] = all(sums[n][G - 1]);
        sums[n][G - 1][0] = S::load(weights.bias_rec + (u + n) * W);
#pragma GCC unroll 4
        for (int j = 1; j < kOf; ++j) sums[n][G - 1][j] = V{};
        h_prev[n] = S::load(h_in + (u + n) * W);
      }
    }
    add<kClose, N>(last, sums, weights.w_hh, H, u, blocks, h_in);
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      V pre[G], saved[C::kSaved ? C::kSaved : 1], rec{}, c_prev{}, c_next, h_next;
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) pre[g] = all(sums[n][g]);
      if constexpr (C::kSplit) {
        rec = pre[G - 1];
        pre[G - 1] = input[n];
      }
      if constexpr (C::kHasCell) c_prev = S::load(c + (u + n) * W);
      C::forward(pre, rec, h_prev[n], c_prev, saved, c_next, h_next);
      if constexpr (C::kHasCell) S::store(c + (u + n) * W, c_next);
      S::store(h_out + (u + n) * W, h_next);
    }
  }

  template <int kOf>
  static FASTRNN_INLINE V all(const V (&sums)[kOf]) {
    if constexpr (kOf == 4) return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return sums[0] + sums[1];
  }
};

}  // namespace
}  // namespace fastrnn
