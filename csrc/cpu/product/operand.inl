// What the operands of forward's products are stored as. The accumulators are the compute type T in
// every case.
//
//   NaturalOperand<T>   the compute type itself
//   Bf16Operand         bfloat16 pairs for the dot instruction of AVX512-BF16, which multiplies and
//                       adds two of them a lane: for bfloat16 layers, whose weights and inputs it
//                       takes as they are; h is rounded to bfloat16 as the output is
//
// An operand type gives: E, the element; depth(K), rows of a packed panel; load and store of one
// vector of T; and pack, multiply on panels [depth(K)][vectors*W] (pairs: [depth(K)/2][vectors*W][2]).
#pragma once
#include "cpu/product/pack.inl"

namespace fastrnn {
namespace {

template <class T>
struct NaturalOperand {
  using E = T;
  using S = Simd<T>;
  static constexpr bool kRounds = false;  // whether a stored state loses precision

  static FASTRNN_INLINE int64_t depth(int64_t K) { return K; }
  static FASTRNN_INLINE typename S::V load(const E* p) { return S::load(p); }
  static FASTRNN_INLINE void store(E* p, typename S::V v) { S::store(p, v); }
  static FASTRNN_INLINE void end_row(E*, int) {}  // a product reads whole units
  // In parts of so many gates, or (0) in one.
  static void pack(const void* weight, int64_t ld, Dtype dtype, int G, const Panels<T>& units, int64_t panel,
                   int64_t K, E* out, int of_part = 0) {
    const int gates = of_part ? of_part : G;
    for (int g = 0; g < G; g += gates, out += K * gates * units.blocks_of(panel) * S::W) {
      pack_gate_panel<T>(weight, ld, dtype, g, gates, units, panel, K, out);
    }
  }
  static FASTRNN_INLINE void multiply(int rows, int vectors, T* tile, const E* a, int64_t block_stride, const E* b,
                                      int64_t K, const char* ahead) {
    fastrnn::multiply<T>(rows, vectors, tile, a, block_stride, b, vectors * S::W, K, ahead);
  }
};

#ifdef FASTRNN_AVX512
#define FASTRNN_HAS_BF16_DOT

using DotKernel = void (*)(float* tile, const uint16_t* a, int64_t block_stride, const uint16_t* b, int64_t K,
                           const char* ahead);

// product_kernel on pairs: tile[m][v] += A[m][k] * B[k][v] + A[m][k+1] * B[k+1][v].
template <int MR, int NV>
__attribute__((target("avx512bf16"))) void dot_kernel(float* tile, const uint16_t* a, int64_t block_stride,
                                                      const uint16_t* b, int64_t K, const char* ahead) {
  constexpr int W = 16;
  __m512 acc[MR][NV];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_loadu_ps(tile + (m * NV + v) * W);
  }
  const int64_t ahead_step = ahead ? 64 : 0;
  if (!ahead) ahead = reinterpret_cast<const char*>(b);
  for (int64_t k = 0; k < K; k += W, a += block_stride) {
    const int pairs = static_cast<int>(min_of<int64_t>(W, K - k) + 1) / 2;
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) __builtin_prefetch(a + 2 * block_stride + m * W);
#pragma GCC unroll 2
    for (int pair = 0; pair < pairs; ++pair, b += NV * W * 2) {
      __builtin_prefetch(ahead, 0, 2);
      __builtin_prefetch(ahead + 64, 0, 2);
      ahead += 2 * ahead_step;
      __m512bh row[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) row[v] = (__m512bh)_mm512_loadu_si512(b + v * W * 2);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        int32_t both;
        __builtin_memcpy(&both, a + m * W + 2 * pair, 4);
        const __m512bh broadcast = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], broadcast, row[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) _mm512_storeu_ps(tile + (m * NV + v) * W, acc[m][v]);
  }
}

struct DotKernels {
  DotKernel kernels[kMaxVectors][kMaxRows];

  template <int NV, int MR>
  constexpr void fill() {
    if constexpr (MR <= tile_rows(NV)) kernels[NV - 1][MR - 1] = dot_kernel<MR, NV>;
    if constexpr (MR < kMaxRows) {
      fill<NV, MR + 1>();
    } else if constexpr (NV < kMaxVectors) {
      fill<NV + 1, 1>();
    }
  }
  constexpr DotKernels() : kernels{} { fill<1, 1>(); }
};
constexpr DotKernels kDotKernels{};

struct Bf16Operand {
  using E = uint16_t;
  using S = Simd<float>;
  static constexpr bool kRounds = true;

  static FASTRNN_INLINE int64_t depth(int64_t K) { return (K + 1) / 2 * 2; }
  static FASTRNN_INLINE S::V load(const E* p) { return load_as<float>(p, 0, S::W, Dtype::kBFloat16); }
  static FASTRNN_INLINE void store(E* p, S::V v) { store_as<float>(p, 0, v, S::W, Dtype::kBFloat16); }
  // The last pair of an odd number of units reads one lane more, times 0. An infinite input makes NaN of it.
  static FASTRNN_INLINE void end_row(E* p, int lanes) {
    if (lanes & 1) p[lanes] = 0;
  }

  static void pack(const void* weight, int64_t ld, Dtype dtype, int G, const Panels<float>& units, int64_t panel,
                   int64_t K, E* out, int /*of_part*/ = 0) {
    constexpr int W = S::W;
    const int blocks = units.blocks_of(panel);
    const int64_t row_size = static_cast<int64_t>(blocks) * G * W * 2;  // of a pair
    for (int u = 0; u < blocks; ++u) {
      const int64_t block = units.first_block(panel) + u;
      for (int g = 0; g < G; ++g) {
        E* dst = out + (u * G + g) * W * 2;
        for (int64_t k = 0; k < K; k += W) {
          const int n = static_cast<int>(min_of<int64_t>(W, K - k));
          S::V rows[W];
          load_transposed<float>(rows, weight, g * units.length + block * W, ld, k, units.lanes(block), n, dtype);
          alignas(64) float columns[W * W];
#pragma GCC unroll 16
          for (int j = 0; j < W; ++j) S::store(columns + j * W, rows[j]);
          for (int j = 0; j < n; j += 2) {  // the weights are bfloat16: their low halves are zero
            const __m512i low = _mm512_load_si512(columns + j * W), high = _mm512_load_si512(columns + (j + 1) * W);
            _mm512_storeu_si512(dst + (k + j) / 2 * row_size, _mm512_or_si512(_mm512_srli_epi32(low, 16), high));
          }
        }
      }
    }
  }
  static FASTRNN_INLINE void multiply(int rows, int vectors, float* tile, const E* a, int64_t block_stride,
                                      const E* b, int64_t K, const char* ahead) {
    kDotKernels.kernels[vectors - 1][rows - 1](tile, a, block_stride, b, K, ahead);
  }
};
#endif

}  // namespace
}  // namespace fastrnn

#ifdef FASTRNN_NEON
#include "cpu/product/neon_dot.inl"
#endif
