// Steps of an SRU layer for one row: the product by dots with the weight's rows as the operator's step makes them
// (product/few_rows.inl), then the recurrence of cells/sru.h.
//
// State: c [padded O], and what only a step needs: x [padded I] with zeros behind it, u [K][padded O].
#pragma once
#include "cells/sru.h"
#include "cpu/product/few_rows.inl"
#include "cpu/stream/rnn.inl"

namespace fastrnn {
namespace {

template <template <class> class CellOf>
struct ScanSteps {
  using S = Simd<float>;
  using V = S::V;
  using Cell = CellOf<VectorMath<float>>;
  static constexpr int W = S::W;

  static void run(const void* prepared, float* state, const float* x, float* y, int64_t steps) {
    const StreamScan& layer = *static_cast<const StreamScan*>(prepared);
    const int64_t I = layer.I, O = layer.O, width = padded_to_registers(O);
    float *const c = state, *const row = c + width, *const u = row + padded_to_registers(I);
    const V scale = S::set(layer.scale);
    for (int64_t t = 0; t < steps; ++t, x += I, y += O) {
      for (int64_t i = 0; i < I; i += W) {
        S::store(row + i, S::load_n(x + i, static_cast<int>(min_of<int64_t>(W, I - i))));
      }
      for (int64_t r = 0; r < O * layer.K; r += W) {
        const int count = static_cast<int>(min_of<int64_t>(W, O * layer.K - r));
        alignas(64) float sums[W] = {};
        dot_rows<float, Dtype::kFloat, 1>(sums, W, layer.weight + r * I, count, I, row, W, nullptr);
        for (int j = 0; j < count; ++j) u[(r + j) % layer.K * width + (r + j) / layer.K] = sums[j];
      }
      for (int64_t j = 0; j < O; j += W) {
        V input[Cell::kInputs], w[Cell::kGates], b[Cell::kGates], highway{}, next, out;
#pragma GCC unroll 4
        for (int k = 0; k < Cell::kInputs; ++k) input[k] = S::load(u + k * width + j);
        if (layer.K > Cell::kInputs) {
          highway = S::load(u + Cell::kInputs * width + j);
        } else if (layer.skip) {
          highway = scale * S::load(row + j);
        }
#pragma GCC unroll 4
        for (int k = 0; k < Cell::kGates; ++k) {
          w[k] = S::load(layer.weight_c + k * width + j);
          b[k] = S::load(layer.bias + k * width + j);
        }
        Cell::forward(input, w, b, highway, S::set(1), S::load(c + j), next, out);
        S::store(c + j, next);
        S::store_n(y + j, out, static_cast<int>(min_of<int64_t>(W, O - j)));
      }
    }
  }
};

struct ScanPieces {
  float *weight, *weight_c, *bias;
  ScanPieces(const StreamScan& layer, Arena& arena) {
    weight = arena.take<float>(layer.O * layer.K * layer.I);
    weight_c = arena.take<float>(2 * padded_to_registers(layer.O));
    bias = arena.take<float>(2 * padded_to_registers(layer.O));
  }
};

size_t scan_bytes(const StreamScan& layer) {
  Arena arena;
  ScanPieces(layer, arena);
  return arena.used;
}

size_t scan_state(const StreamScan& layer) {
  return static_cast<size_t>((1 + layer.K) * padded_to_registers(layer.O) + padded_to_registers(layer.I));
}

void prepare_scan(StreamScan& layer, const float* weight, const float* weight_c, const float* bias, char* memory) {
  Arena arena{memory};
  const ScanPieces pieces(layer, arena);
  const int64_t O = layer.O, width = padded_to_registers(O);
  for (int64_t i = 0; i < O * layer.K * layer.I; ++i) pieces.weight[i] = weight[i];
  for (int64_t i = 0; i < 2 * width; ++i) {
    const int64_t unit = i % width, from = i / width * O + unit;
    pieces.weight_c[i] = unit < O ? weight_c[from] : 0;
    pieces.bias[i] = unit < O ? bias[from] : 0;
  }
  layer.weight = pieces.weight;
  layer.weight_c = pieces.weight_c;
  layer.bias = pieces.bias;
  layer.run = layer.use_tanh ? ScanSteps<SruTanhCell>::run : ScanSteps<SruPlainCell>::run;
}

}  // namespace
}  // namespace fastrnn
