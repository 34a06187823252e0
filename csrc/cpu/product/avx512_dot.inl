// The dot instruction of AVX512-BF16 for Bf16Operand (operand.inl): the kernel of a tile, and panels of pairs.
#pragma once
#include "cpu/product/pack.inl"

#define FASTRNN_HAS_BF16_DOT

namespace fastrnn {
namespace {

constexpr int kDotTerms = 2;

// A vector of pairs, for the dot products of MR rows.
template <int MR>
FASTRNN_INLINE __m512bh dot_row(const uint16_t* pairs) {
  __m512i row = _mm512_loadu_si512(pairs);
  if constexpr (MR > 1) in_register(row);
  return (__m512bh)row;
}

// See DotKernel.
template <int MR, int NV>
void dot_kernel(float* tile, const uint16_t* a, int64_t block_stride, const uint16_t* b, int64_t K,
                const char* ahead) {
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
      for (int v = 0; v < NV; ++v) row[v] = dot_row<MR>(b + v * 2 * W);
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

// See DotTransposed. Every sum begins from zero once in kJoinedRows rows, as transposed_kernel's: fewer roundings
// would be lost in those of the operands.
constexpr int64_t kJoinedRows = 256;

template <int MR, int NV>
void dot_transposed(float* tile, const uint16_t* a, const uint16_t* b, int64_t rows) {
  constexpr int W = 16;
#pragma GCC unroll 1
  for (int64_t r = 0; r < rows;) {
    const int64_t end = min_of(rows, r + kJoinedRows);
    __m512 acc[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_setzero_ps();
    }
#pragma GCC unroll 1
    for (; r < end; r += 2, a += 2 * W, b += NV * 2 * W) {
      __m512bh row[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) row[v] = dot_row<MR>(b + v * 2 * W);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        int32_t both;
        __builtin_memcpy(&both, a + 2 * m, 4);
        const __m512bh broadcast = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], broadcast, row[v]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float* const sum = tile + (m * NV + v) * W;
        _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), acc[m][v]));
      }
    }
    forget_memory();
  }
}

// The sum of all rows of a block of pairs of rows.
inline Simd<float>::V sum_joined_rows(const uint16_t* a, int64_t rows) {
  constexpr int kChains = 4;
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  __m512 total = _mm512_setzero_ps();
  for (int64_t r = 0; r < rows;) {
    const int64_t end = min_of(rows, r + kJoinedRows);
    __m512 sums[kChains] = {};
    for (; r < end; r += 2 * kChains) {
#pragma GCC unroll 4
      for (int j = 0; j < kChains; ++j) {
        if (r + 2 * j >= end) break;
        const __m512bh pairs = (__m512bh)_mm512_loadu_si512(a + (r + 2 * j) * 16);
        sums[j] = _mm512_dpbf16_ps(sums[j], pairs, ones);
      }
    }
    total = _mm512_add_ps(total, _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
    r = end;
  }
  return (Simd<float>::V)total;
}

// n of W elements, and zeros.
FASTRNN_INLINE void copy_half(uint16_t* to, const uint16_t* from, int n) {
  const __mmask16 mask = static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_maskz_loadu_epi16(mask, from));
}

// n lanes of two rows from `at` on (the second zero where it is null) as pairs; zeros beyond.
FASTRNN_INLINE void store_terms(uint16_t* out, const uint16_t* const (&rows)[kDotTerms], int64_t at, int n) {
  const __mmask16 mask = static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1);
  __m512i pairs = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, rows[0] + at));
  if (rows[1]) {
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, rows[1] + at));
    pairs = _mm512_or_si512(pairs, _mm512_slli_epi32(high, 16));
  }
  _mm512_storeu_si512(out, pairs);
}

// Two rows of W, one after the other, become W pairs in their place.
FASTRNN_INLINE void join_rows(uint16_t* rows) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows)));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + 16)));
  _mm512_storeu_si512(rows, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

// A gate panel of pairs: [depth(K)/2][vectors*W][2]. A pair is moved as one number of 32 bits, so that W rows of W
// pairs are transposed as W rows of floats are.
inline void pack_terms(const uint16_t* weight, int64_t ld, int G, const Panels<float>& units, int64_t panel,
                       int64_t K, uint16_t* out) {
  using S = Simd<float>;
  constexpr int W = S::W;
  const int blocks = units.blocks_of(panel);
  const int64_t row_size = static_cast<int64_t>(blocks) * G * W * 2;  // of a pair
  for (int u = 0; u < blocks; ++u) {
    const int64_t block = units.first_block(panel) + u;
    const int lanes = units.lanes(block);
    for (int g = 0; g < G; ++g) {
      uint16_t* dst = out + (u * G + g) * W * 2;
      const uint16_t* const first = weight + (g * units.length + block * W) * ld;
      const uint16_t* const after = first + (g + 1 < G ? units.length : W - g * units.length) * ld;
      for (int64_t k = 0; k < K; k += 2 * W, dst += W * row_size) {
        const uint16_t* const from = first + k;
        const int n = static_cast<int>(min_of<int64_t>(2 * W, K - k)), pairs = (n + 1) / 2;
        prefetch_rows<W>(first, after, ld * 2, k * 2, K * 2);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) __builtin_prefetch(dst + (kPackedAhead + j) * row_size, 1, 2);
        S::V rows[W];
        if (lanes == W && n == 2 * W) {
          load_columns<float>(rows, reinterpret_cast<const char*>(from), ld * 2);
        } else {
          const __mmask32 columns = static_cast<__mmask32>((uint64_t{1} << n) - 1);
#pragma GCC unroll 16
          for (int j = 0; j < W; ++j) {
            rows[j] = j < lanes ? (S::V)_mm512_maskz_loadu_epi16(columns, from + j * ld) : S::V{};
          }
          transpose<float>(rows);
        }
#pragma GCC unroll 16
        for (int p = 0; p < W; ++p) {
          if (p < pairs) _mm512_storeu_si512(dst + p * row_size, (__m512i)rows[p]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastrnn
