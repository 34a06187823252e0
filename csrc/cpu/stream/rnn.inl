// Steps of a recurrent layer for one row, on weights that are packed as the operators pack them (panels.inl).
//
// The order of every sum is that of a step of rnn/forward.inl with one row, tile and chains included, so that a
// stream gives what rnn_stream gives a step at a time, to the last bit, however the steps are grouped into calls.
//
// State: h [padded outputs], c [padded H], and what only a step needs: the new h, m before a projection. A layer of
// few units has its own steps, one_row.inl.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/product/panels.inl"
#include "cpu/rnn/one_row.inl"
#include "cpu/stream/kernels.h"

namespace fastrnn {
namespace {

FASTRNN_INLINE int64_t padded_to_registers(int64_t size) { return ceil_div(size, Simd<float>::W) * Simd<float>::W; }

// tile[v] += row . B, one row of A that lies in memory as it is.
FASTRNN_INLINE void multiply_row(int vectors, float* tile, const float* row, const float* b, int64_t K) {
  constexpr int W = Simd<float>::W;
  const auto run = [&]<int NV>() {
#ifdef FASTRNN_NEON
    neon_product<float, 1, NV, chains_of(NV, W), kSumBlock>(tile, tile, 0, row, W, b, NV * W, K, nullptr);
#else
    product_kernel<float, 1, NV>(tile, tile, 0, row, W, b, NV * W, K, nullptr);
#endif
  };
  switch (vectors) {
    case 1:
      return run.template operator()<1>();
    case 2:
      return run.template operator()<2>();
    case 3:
      return run.template operator()<3>();
    default:
      return run.template operator()<4>();
  }
}

template <template <class> class CellOf>
struct RnnSteps {
  using Operand = NaturalOperand<float>;
  using Weights = PackedWeights<float, CellOf, Operand>;
  using S = Simd<float>;
  using V = S::V;
  using C = CellOf<VectorMath<float>>;
  static constexpr int W = S::W, G = C::kGates, kParts = Weights::kParts;

  struct State {
    float *h, *c, *next, *m;
    int32_t* at;  // with few units: which of h and next is h
    State(const LayerShape& s, float* memory) {
      const int64_t H = padded_to_registers(s.H), out = padded_to_registers(s.out_size());
      h = memory;
      c = h + out;
      next = c + H;
      m = next + out;
      at = reinterpret_cast<int32_t*>(m + H);
    }
    static size_t size(const LayerShape& s) {
      return static_cast<size_t>(2 * padded_to_registers(s.out_size()) + 2 * padded_to_registers(s.H) + 1);
    }
  };

  static void prepare(StreamRnn& layer, const DirectionWeights& weights, char* memory) {
    Weights packed;
    packed.read(memory, layer.shape);
    packed.pack(weights, layer.shape);
    layer.w_ih = packed.w_ih;
    layer.w_hh = packed.w_hh;
    layer.w_hr = packed.w_hr;
    layer.bias = packed.bias;
    layer.bias_rec = packed.bias_rec;
    layer.run = !few_units(layer.shape)                 ? run
                : OneRow<CellOf>::closes(layer.shape.H) ? run_few_units<true>
                                                        : run_few_units<false>;
  }

  template <bool kClose>
  static void run_few_units(const void* prepared, float* memory, const float* x, float* y, int64_t steps) {
    const StreamRnn& layer = *static_cast<const StreamRnn*>(prepared);
    const int64_t H = layer.shape.H, padded = padded_to_registers(H);
    int32_t* const at = reinterpret_cast<int32_t*>(memory + 4 * padded);
    *at = OneRow<CellOf>::template run<kClose, true>(layer, layer.shape.I, H, {memory, memory + 2 * padded}, *at,
                                                     memory + padded, x, layer.shape.I, y, steps);
  }

  static void run(const void* prepared, float* memory, const float* x, float* y, int64_t steps) {
    const StreamRnn& layer = *static_cast<const StreamRnn*>(prepared);
    const LayerShape& s = layer.shape;
    const State state(s, memory);
    const int64_t out = s.out_size();
    for (int64_t t = 0; t < steps; ++t, x += s.I, y += out) {
      step(layer, state, x);
      if (s.P) project(layer, state);
      copy(state.next, state.h, padded_to_registers(out));
      for (int64_t i = 0; i < out; i += W) {
        S::store_n(y + i, S::load(state.h + i), static_cast<int>(min_of<int64_t>(W, out - i)));
      }
    }
  }

 private:
  static FASTRNN_INLINE void copy(const float* from, float* to, int64_t size) {
    for (int64_t i = 0; i < size; i += W) S::store(to + i, S::load(from + i));
  }

  static FASTRNN_INLINE void step(const StreamRnn& layer, const State& state, const float* x) {
    const Panels<float> units = Weights::units_of(layer.shape);
    const int64_t count = units.count();
    int64_t panel = 0;
    if constexpr (kRowPanels > 1) {
      constexpr int64_t kTiles = kRowPanels / kParts;
      const int64_t whole = units.length / (Weights::kUnits * W);
      while (panel < whole) {
        const int64_t tiles = min_of(kTiles, whole - panel);
        step_panels<kTiles>(layer, state, x, units, panel, static_cast<int>(tiles));
        panel += tiles;
      }
    }
    for (; panel < count; ++panel) {
      const typename Weights::Lie lie = Weights::lie_of(units, panel);
      const int64_t first = units.first_block(panel);
      alignas(64) float tile[(kMaxVectors + 1) * W];  // as in rnn/forward_step.inl
      const V input = begin_tile(tile, layer, x, first, lie);
      add(lie.vectors, tile, state.h, layer.w_hh + first * Weights::panel_size(layer.shape.out_size()),
          layer.shape.out_size());
      finish_tile(tile, input, layer, state, first, lie);
    }
  }

  // Of panels that follow each other and are whole, as in rnn/forward_step.inl.
  template <int64_t kTiles>
  static FASTRNN_INLINE void step_panels(const StreamRnn& layer, const State& state, const float* x,
                                         const Panels<float>& units, int64_t panel, int tiles) {
    constexpr int kVectors = Weights::kPartGates * Weights::kUnits, kTile = kParts * kVectors * W;
    const typename Weights::Lie lie = Weights::lie_of(units, panel);
    const int64_t K = layer.shape.out_size(), first = units.first_block(panel);
    alignas(64) float sums[kTiles * kTile];
    V inputs[kTiles];
    for (int j = 0; j < tiles; ++j) {
      inputs[j] = begin_tile(sums + j * kTile, layer, x, first + j * Weights::kUnits, lie);
    }
    multiply_panels<float, kVectors>(tiles * kParts, sums, kVectors * W, state.h, W,
                                     layer.w_hh + first * Weights::panel_size(K), K * kVectors * W, K);
    for (int j = 0; j < tiles; ++j) {
      finish_tile(sums + j * kTile, inputs[j], layer, state, first + j * Weights::kUnits, lie);
    }
  }

  // Biases and the product of the inputs; what stays apart of the latter is returned, and its place begins anew.
  static FASTRNN_INLINE V begin_tile(float* tile, const StreamRnn& layer, const float* x, int64_t first,
                                     const typename Weights::Lie& lie) {
    const int64_t I = layer.shape.I;
    copy(layer.bias + first * G * W, tile, lie.vectors * kParts * W);
    add(lie.vectors, tile, x, layer.w_ih + first * Weights::panel_size(I), I);
    V input{};
    if constexpr (C::kSplit) {
      static_assert(Weights::kUnits == 1);
      float* const split = tile + lie.at(0, 1, 0, G - 1);
      input = S::load(split);
      S::store_n(split, S::load(layer.bias_rec + first * W), lie.gate_step);
    }
    return input;
  }

  static FASTRNN_INLINE void finish_tile(const float* tile, V input, const StreamRnn& layer, const State& state,
                                         int64_t first, const typename Weights::Lie& lie) {
    float* const h_out = layer.shape.P ? state.m : state.next;
    for (int u = 0; u < lie.units; ++u) {
      const int64_t at = (first + u) * W;
      V pre[G], saved[C::kSaved ? C::kSaved : 1], rec{}, h_prev{}, c_prev{}, c, h;
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) pre[g] = S::load(tile + lie.at(0, 1, u, g));
      if constexpr (C::kSplit) {
        rec = pre[G - 1];
        pre[G - 1] = input;
        h_prev = S::load(state.h + at);
      }
      if constexpr (C::kHasCell) c_prev = S::load(state.c + at);
      C::forward(pre, rec, h_prev, c_prev, saved, c, h);
      if constexpr (C::kHasCell) S::store(state.c + at, c);
      S::store(h_out + at, h);
    }
  }

  static FASTRNN_INLINE void add(int of_part, float* tile, const float* row, const float* weights, int64_t K) {
    for (int part = 0; part < kParts; ++part) {
      multiply_row(of_part, tile + part * of_part * W, row, weights + part * of_part * W * K, K);
    }
  }

  static FASTRNN_INLINE void project(const StreamRnn& layer, const State& state) {
    const LayerShape& s = layer.shape;
    const Panels<float> outputs = Weights::outputs_of(s);
    for (int64_t panel = 0; panel < outputs.count(); ++panel) {
      const int64_t first = outputs.first_block(panel);
      const int vectors = outputs.blocks_of(panel);
      alignas(64) float tile[kMaxVectors * W] = {};
      multiply_row(vectors, tile, state.m, layer.w_hr + first * W * s.H, s.H);
      copy(tile, state.next + first * W, vectors * W);
    }
  }
};

// f.template operator()<Cell>() for the layer's one.
template <class F>
void with_stream_cell(const LayerShape& shape, F&& f) {
  switch (shape.cell) {
    case CellKind::kLstm:
      return f.template operator()<LstmCell>();
    case CellKind::kGru:
      return f.template operator()<GruCell>();
    case CellKind::kRnnTanh:
      return f.template operator()<RnnTanhCell>();
    case CellKind::kRnnRelu:
      return f.template operator()<RnnReluCell>();
  }
}

size_t rnn_bytes(const LayerShape& shape) {
  size_t bytes = 0;
  with_stream_cell(shape, [&]<template <class> class Cell>() { bytes = RnnSteps<Cell>::Weights::bytes(shape); });
  return bytes;
}

size_t rnn_state(const LayerShape& shape) { return RnnSteps<LstmCell>::State::size(shape); }

void prepare_rnn(StreamRnn& layer, const DirectionWeights& weights, char* memory) {
  with_stream_cell(layer.shape,
                   [&]<template <class> class Cell>() { RnnSteps<Cell>::prepare(layer, weights, memory); });
}

}  // namespace
}  // namespace fastrnn
