// The dot instruction of AVX512-BF16 for Bf16Operand (operand.inl): the kernel of a tile, and panels of pairs.
#pragma once
#include "cpu/product/pack.inl"

#define FASTRNN_HAS_BF16_DOT

namespace fastrnn {
namespace {

// See DotKernel.
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

// A gate panel of pairs: [depth(K)/2][vectors*W][2].
inline void pack_pairs(const uint16_t* weight, int64_t ld, int G, const Panels<float>& units, int64_t panel,
                       int64_t K, uint16_t* out) {
  using S = Simd<float>;
  constexpr int W = S::W;
  const int blocks = units.blocks_of(panel);
  const int64_t row_size = static_cast<int64_t>(blocks) * G * W * 2;  // of a pair
  for (int u = 0; u < blocks; ++u) {
    const int64_t block = units.first_block(panel) + u;
    for (int g = 0; g < G; ++g) {
      uint16_t* dst = out + (u * G + g) * W * 2;
      for (int64_t k = 0; k < K; k += W) {
        const int n = static_cast<int>(min_of<int64_t>(W, K - k));
        S::V rows[W];
        load_transposed<float>(rows, weight, g * units.length + block * W, ld, k, units.lanes(block), n,
                               Dtype::kBFloat16);
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

}  // namespace
}  // namespace fastrnn
