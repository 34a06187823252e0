// Products with quantized weights (weights.h): rows of a left operand times a block of units, all of its gates.
#pragma once
#include "cpu/quantized/dot.inl"
#include "cpu/quantized/weights.h"

namespace fastrnn {
namespace {

#if defined(FASTRNN_AVX512) || defined(FASTRNN_NEON)
constexpr int kQuantizedSums = 24;  // registers for sums, of the 32 there are
constexpr int kQuantizedRows = 4;
#else
constexpr int kQuantizedSums = 8;  // of 16
constexpr int kQuantizedRows = 2;
#endif
constexpr int kBlockRegisters = static_cast<int>(kQuantizedBlock) / Simd<float>::W;

// A block of a matrix.
struct QuantizedBlock {
  const char* data;
  const float* scale;
  const int32_t* offset;

  static FASTRNN_INLINE QuantizedBlock of(const QuantizedMatrix& m, int64_t block, int G, int64_t bytes) {
    const int64_t row = block * G * kQuantizedBlock;
    return {m.data + block * bytes, m.scale + row, m.offset + row};
  }
};

// Rows of a left operand: `stride` elements apart, and what a unit of each is worth (int8 only).
template <class E>
struct LeftRows {
  const E* data;
  int64_t stride;
  const float* scale;
};

// tile[m][g][16] += rows[m] . weight[g][unit], m < MR, over `groups` groups of columns.
template <class E>
using QuantizedProduct = void (*)(const QuantizedBlock& weight, const LeftRows<E>& rows, int64_t groups, float* tile);

// Registers of a gate at once, and chains of sums, up to four, which hide the latency of a multiply-add: the left
// operands and the weights want registers too.
constexpr int registers_at_once(int G, int MR) {
  return G * MR * kBlockRegisters <= kQuantizedSums ? kBlockRegisters : 1;
}
constexpr int kMostChained = kQuantizedSums == 24 ? 16 : 8;
constexpr int quantized_chains(int sums) { return 4 * sums <= kMostChained ? 4 : 2 * sums <= kMostChained ? 2 : 1; }

constexpr int64_t kAhead = 2048;  // bytes

template <class Dot, int G, int MR>
void int8_product(const QuantizedBlock& weight, const LeftRows<int8_t>& rows, int64_t groups, float* tile) {
  using S = Simd<float>;
  constexpr int W = S::W, NV = registers_at_once(G, MR), kChains = quantized_chains(G * MR * NV);
  constexpr int64_t kBytes = W * 4, kGate = kQuantizedBlock * 4;
#pragma GCC unroll 1
  for (int first = 0; first < kBlockRegisters; first += NV) {
    typename Dot::Sum sums[kChains][MR][G][NV];
#pragma GCC unroll 4
    for (int s = 0; s < kChains; ++s) {
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sums[s][m][g][v].clear();
        }
      }
    }
    const int8_t* w = reinterpret_cast<const int8_t*>(weight.data) + first * kBytes;
    const int8_t* a = rows.data;
    const auto add = [&](auto& sum) __attribute__((always_inline)) {
    // Weights that the L2 cache does not hold come 6% faster.
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) __builtin_prefetch(w + kAhead + g * kGate);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
        const typename Dot::Left left(a + m * rows.stride);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sum[m][g][v].add(w + g * kGate + v * kBytes, left);
        }
      }
      w += G * kGate;
      a += 4;
    };
    int64_t k = 0;
#pragma GCC unroll 1
    for (; k + kChains <= groups; k += kChains) {
#pragma GCC unroll 4
      for (int s = 0; s < kChains; ++s) add(sums[s]);
    }
#pragma GCC unroll 1
    for (; k < groups; ++k) add(sums[0]);
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      const S::V of_row = S::set(rows.scale[m]);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const int64_t at = g * kQuantizedBlock + (first + v) * W;
          S::VInt total = sums[0][m][g][v].total();
#pragma GCC unroll 4
          for (int s = 1; s < kChains; ++s) total += sums[s][m][g][v].total();
          if constexpr (Dot::kOffset) {
            S::VInt offset;
            __builtin_memcpy(&offset, weight.offset + at, sizeof(offset));
            total += offset;
          }
          float* to = tile + m * G * kQuantizedBlock + at;
          const S::V product = __builtin_convertvector(total, S::V) * S::load(weight.scale + at);
          S::store(to, S::load(to) + product * of_row);
        }
      }
    }
  }
}

// Pairs of bfloat16 in a lane: the first in its lower half. Widened they are multiplied as float32.
template <int G, int MR>
void bfloat16_product(const QuantizedBlock& weight, const LeftRows<float>& rows, int64_t groups, float* tile) {
  using S = Simd<float>;
  constexpr int W = S::W, NV = registers_at_once(G, MR), kChains = quantized_chains(G * MR * NV);
  constexpr int kSteps = kChains == 4 ? 2 : 1;  // groups of columns at once, an even and an odd one each
  constexpr int64_t kBytes = W * 4, kGate = kQuantizedBlock * 4;
#pragma GCC unroll 1
  for (int first = 0; first < kBlockRegisters; first += NV) {
    S::V sums[kChains][MR][G][NV];
#pragma GCC unroll 4
    for (int s = 0; s < kChains; ++s) {
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sums[s][m][g][v] = S::V{};
        }
      }
    }
    const char* w = weight.data + first * kBytes;
    const float* a = rows.data;
    const auto add = [&](auto& even_sums, auto& odd_sums) __attribute__((always_inline)) {
      S::V even[MR], odd[MR];
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
        even[m] = S::broadcast(a[m * rows.stride]);
        odd[m] = S::broadcast(a[m * rows.stride + 1]);
      }
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          S::VInt pairs;
          __builtin_memcpy(&pairs, w + g * kGate + v * kBytes, sizeof(pairs));
          const S::V low = (S::V)(pairs << 16), high = (S::V)(pairs & static_cast<int32_t>(0xffff0000));
#pragma GCC unroll 4
          for (int m = 0; m < MR; ++m) {
            even_sums[m][g][v] += low * even[m];
            odd_sums[m][g][v] += high * odd[m];
          }
        }
      }
      w += G * kGate;
      a += 2;
    };
    int64_t k = 0;
#pragma GCC unroll 1
    for (; k + kSteps <= groups; k += kSteps) {
#pragma GCC unroll 2
      for (int s = 0; s < kSteps; ++s) add(sums[2 * s % kChains], sums[(2 * s + 1) % kChains]);
    }
#pragma GCC unroll 1
    for (; k < groups; ++k) add(sums[0], sums[1 % kChains]);
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          float* to = tile + m * G * kQuantizedBlock + g * kQuantizedBlock + (first + v) * W;
          S::V sum = sums[0][m][g][v];
#pragma GCC unroll 4
          for (int s = 1; s < kChains; ++s) sum += sums[s][m][g][v];
          S::store(to, S::load(to) + sum);
        }
      }
    }
  }
}

// The kernels of every height for G gates, by [rows - 1].
template <class E, int G>
struct QuantizedProducts {
  QuantizedProduct<E> of_rows[kQuantizedRows];

  template <class Dot, int MR = 1>
  constexpr void fill() {
    if constexpr (sizeof(E) == 1) {
      of_rows[MR - 1] = int8_product<Dot, G, MR>;
    } else {
      of_rows[MR - 1] = bfloat16_product<G, MR>;
    }
    if constexpr (MR < kQuantizedRows) fill<Dot, MR + 1>();
  }
};
template <class E, int G, class Dot>
constexpr QuantizedProducts<E, G> quantized_products() {
  QuantizedProducts<E, G> products{};
  products.template fill<Dot>();
  return products;
}
template <class E, int G>
FASTRNN_INLINE const QuantizedProducts<E, G>& quantized_products_of(bool dot) {
  static constexpr QuantizedProducts<E, G> plain = quantized_products<E, G, Int8Dot>();
  static constexpr QuantizedProducts<E, G> by_instruction = quantized_products<E, G, Int8DotInstruction>();
  return dot ? by_instruction : plain;
}

}  // namespace
}  // namespace fastrnn
