// y = W x + b for the rows of a chunk, and activations by themselves.
#pragma once
#include "cpu/product/few_rows.inl"
#include "cpu/stream/rnn.inl"

namespace fastrnn {
namespace {

struct Dense {
  using S = Simd<float>;
  using V = S::V;
  static constexpr int W = S::W;
  // With few outputs, as an amplifier has (one), most lanes of a panel would be empty: then the inputs are the lanes,
  // and W steps give a register of sums.
  static constexpr int64_t kFewOutputs = W / 4 > 2 ? W / 4 : 2;
  // Fewer rows are summed each by itself.
  static constexpr int kTogether = W / 4 > 2 ? W / 4 : 2;

  static bool few(const StreamDense& layer) { return layer.O <= kFewOutputs; }
  static Panels<float> outputs(const StreamDense& layer) { return {layer.O, kPanelVectors}; }

  struct Pieces {
    float *weight, *bias;
    Pieces(const StreamDense& layer, Arena& arena) {
      const int64_t size =
          few(layer) ? layer.O * padded_to_registers(layer.I) : padded_to_registers(layer.O) * layer.I;
      weight = arena.take<float>(size);
      bias = arena.take<float>(padded_to_registers(layer.O));
    }
  };

  static void prepare(StreamDense& layer, const float* weight, const float* bias, char* memory) {
    Arena arena{memory};
    const Pieces pieces(layer, arena);
    if (few(layer)) {
      const int64_t padded = padded_to_registers(layer.I);
      for (int64_t o = 0; o < layer.O; ++o) {
        for (int64_t i = 0; i < padded; ++i) {
          pieces.weight[o * padded + i] = i < layer.I ? weight[o * layer.I + i] : 0;
        }
      }
    } else {
      const Panels<float> panels = outputs(layer);
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        NaturalOperand<float>::pack(weight, layer.I, Dtype::kFloat, 1, panels, panel, layer.I,
                                    pieces.weight + panels.first_block(panel) * W * layer.I);
      }
    }
    for (int64_t o = 0; o < padded_to_registers(layer.O); ++o) pieces.bias[o] = bias && o < layer.O ? bias[o] : 0;
    layer.weight = pieces.weight;
    layer.bias = pieces.bias;
    layer.run = few(layer) ? run_few : run_panels;
  }

 private:
  // The products of an output's weights and a row, in the lanes of a register.
  static FASTRNN_INLINE V dot(const float* row, const float* weight, int64_t I) {
    V sum{};
    int64_t i = 0;
    for (; i + W <= I; i += W) sum += S::load(row + i) * S::load(weight + i);
    if (i < I) sum += S::load_n(row + i, static_cast<int>(I - i)) * S::load(weight + i);
    return sum;
  }

  static void run_few(const void* prepared, float*, const float* x, float* y, int64_t steps) {
    const StreamDense& layer = *static_cast<const StreamDense*>(prepared);
    if (steps >= kTogether) return run_few_together(layer, x, y, steps);
    const int64_t I = layer.I, padded = padded_to_registers(I);
    for (; steps; --steps, x += I) {
      const float* weight = layer.weight;
      for (int64_t o = 0; o < layer.O; ++o, weight += padded) *y++ = sum_pairwise(dot(x, weight, I)) + layer.bias[o];
    }
  }

  static __attribute__((noinline)) void run_few_together(const StreamDense& layer, const float* x, float* y,
                                                         int64_t steps) {
    const int64_t I = layer.I, O = layer.O, padded = padded_to_registers(I);
    for (int64_t first = 0; first < steps; first += W) {
      const int rows = static_cast<int>(min_of<int64_t>(W, steps - first));
      for (int64_t o = 0; o < O; ++o) {
        const float* weight = layer.weight + o * padded;
        const V bias = S::set(layer.bias[o]);
        const auto of_row = [&](int j) __attribute__((always_inline)) { return dot(x + (first + j) * I, weight, I); };
        if (rows < kTogether) {
          for (int j = 0; j < rows; ++j) y[(first + j) * O + o] = sum_pairwise(of_row(j)) + layer.bias[o];
          continue;
        }
        V sums[W] = {};
        if (rows == W) {
#pragma GCC unroll 1
          for (int j = 0; j < W; ++j) sums[j] = of_row(j);
        } else {
#pragma GCC unroll 1
          for (int j = 0; j < rows; ++j) sums[j] = of_row(j);
        }
        const V all = sum_rows<float>(sums) + bias;
        if (O == 1) {
          S::store_n(y + first, all, rows);
        } else {
          alignas(64) float values[W];
          S::store(values, all);
          for (int j = 0; j < rows; ++j) y[(first + j) * O + o] = values[j];
        }
      }
    }
  }

  // The sum of a register's lanes, added in sum_rows's order: a step gives the same bits by itself.
  static FASTRNN_INLINE float sum_pairwise(V v) {
    const auto fold = [&]<int s>() __attribute__((always_inline)) {
      if constexpr (s < W) v += shuffle<float, kSwappedLanes<float, s>>(v, v);
    };
    fold.template operator()<1>();
    fold.template operator()<2>();
    fold.template operator()<4>();
    fold.template operator()<8>();
    return v[0];
  }

  static void run_panels(const void* prepared, float*, const float* x, float* y, int64_t steps) {
    const StreamDense& layer = *static_cast<const StreamDense*>(prepared);
    const Panels<float> panels = outputs(layer);
    for (int64_t t = 0; t < steps; ++t, x += layer.I, y += layer.O) {
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t first = panels.first_block(panel);
        const int vectors = panels.blocks_of(panel);
        alignas(64) float tile[kMaxVectors * W];
        for (int v = 0; v < vectors; ++v) S::store(tile + v * W, S::load(layer.bias + (first + v) * W));
        multiply_row(vectors, tile, x, layer.weight + first * W * layer.I, layer.I);
        for (int v = 0; v < vectors; ++v) {
          S::store_n(y + (first + v) * W, S::load(tile + v * W), panels.lanes(first + v));
        }
      }
    }
  }
};

size_t dense_bytes(const StreamDense& layer) {
  Arena arena;
  Dense::Pieces(layer, arena);
  return arena.used;
}

void prepare_dense(StreamDense& layer, const float* weight, const float* bias, char* memory) {
  Dense::prepare(layer, weight, bias, memory);
}

// f(x) for every element. NaN stays NaN.
template <class F>
FASTRNN_INLINE void for_elements(const float* x, float* y, int64_t count, F&& f) {
  using S = Simd<float>;
  for (int64_t i = 0; i < count; i += S::W) {
    const int n = static_cast<int>(min_of<int64_t>(S::W, count - i));
    S::store_n(y + i, f(S::load_n(x + i, n)), n);
  }
}

void activate(Activation kind, float a, float b, const float* x, float* y, int64_t count) {
  using M = VectorMath<float>;
  using V = M::V;
  const V low = M::set(a), high = M::set(b), one = M::set(1);
  switch (kind) {
    case Activation::kIdentity:
      return for_elements(x, y, count, [&](V v) __attribute__((always_inline)) { return v; });
    case Activation::kRelu:
      return for_elements(x, y, count, [&](V v) __attribute__((always_inline)) { return M::relu(v); });
    case Activation::kLeakyRelu:
      return for_elements(x, y, count,
                          [&](V v) __attribute__((always_inline)) { return v < M::set(0) ? v * low : v; });
    case Activation::kClamp:
      return for_elements(x, y, count, [&](V v) __attribute__((always_inline)) {
        const V above = v < low ? low : v;
        return above > high ? high : above;
      });
    case Activation::kTanh:
      return for_elements(x, y, count, [&](V v) __attribute__((always_inline)) { return M::tanh(v); });
    case Activation::kSigmoid:
      return for_elements(x, y, count, [&](V v) __attribute__((always_inline)) { return M::sigmoid(v); });
    case Activation::kSilu:
      return for_elements(x, y, count, [&](V v) __attribute__((always_inline)) { return v * M::sigmoid(v); });
    case Activation::kElu:
      return for_elements(x, y, count, [&](V v) __attribute__((always_inline)) {
        V scale, tail;  // exp(v) - 1 = scale * tail + (scale - 1), without cancellation at small v
        M::exp_parts<1>(M::clamp(v, -87.0f, 0.0f), scale, tail);
        return v > M::set(0) ? v : low * (scale * tail + (scale - one));
      });
    case Activation::kSoftsign:
      return for_elements(x, y, count, [&](V v) __attribute__((always_inline)) { return v / (one + M::abs(v)); });
    case Activation::kHardSigmoid:
      return for_elements(x, y, count, [&](V v) __attribute__((always_inline)) {
        const V line = v * M::set(1.0 / 6) + M::set(0.5);
        const V above = line < M::set(0) ? M::set(0) : line;
        return above > one ? one : above;
      });
  }
}

}  // namespace
}  // namespace fastrnn
