// The instructions of Arm for bfloat16 for Bf16Operand (operand.inl). BFMMLA takes two rows of four elements from
// each operand and adds the four products of rows to four sums: 16 multiply-adds an instruction, where BFDOT has 8
// and rounds the same way. Every processor with the one has the other.
//
// A block of the left operand has W = 4 elements of a row, so two rows as they lie are a register. Four terms of a
// column lie together in a panel, [K/4][vectors*W][4], and two columns are a register. A tile's sums are kept as the
// instruction has them: of rows m and m+1 and columns c and c+1. So 6 x 4 takes 24 registers of sums, three of the
// left operand and two of the right one.
#pragma once
#include "cpu/product/neon.inl"
#include "cpu/product/pack.inl"

#define FASTRNN_HAS_BF16_DOT
#define FASTRNN_BF16 __attribute__((target("arch=armv8.2-a+bf16")))

namespace fastrnn {
namespace {

constexpr int kDotTerms = 4;

typedef uint16_t TermRegister __attribute__((vector_size(16)));
typedef uint16_t TermRegisterAt __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint64_t FourTermsAt __attribute__((aligned(2), may_alias));

// acc[i][j] += sum over four terms of a[i] * b[j], i and j < 2.
__attribute__((always_inline)) FASTRNN_BF16 inline void multiply_add_two_by_two(Simd<float>::V& acc, TermRegister a,
                                                                                TermRegister b) {
  asm("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(acc) : "w"(a), "w"(b));
}
FASTRNN_INLINE TermRegister load_terms(const uint16_t* p) { return *reinterpret_cast<const TermRegisterAt*>(p); }
// Of one row or column, beside zeros.
FASTRNN_INLINE TermRegister load_four_terms(const uint16_t* p) {
  TermRegister v;
  asm("ldr %d0, %1" : "=w"(v) : "m"(*reinterpret_cast<const FourTermsAt*>(p)));
  return v;
}
// The sums of a tile of MR rows by NV vectors.
template <int MR, int NV>
struct TwoByTwo {
  using S = Simd<float>;
  using V = S::V;
  static constexpr int W = S::W, kRowPairs = (MR + 1) / 2;
  V sums[kRowPairs][NV][2];

  FASTRNN_INLINE void clear() {
#pragma GCC unroll 4
    for (int p = 0; p < kRowPairs; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[p][v][0] = sums[p][v][1] = V{};
    }
  }
  FASTRNN_INLINE void load(const float* tile) {
#pragma GCC unroll 4
    for (int p = 0; p < kRowPairs; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const V low = S::load(tile + (2 * p * NV + v) * W);
        const V high = 2 * p + 1 < MR ? S::load(tile + ((2 * p + 1) * NV + v) * W) : V{};
        exchange(low, high, sums[p][v][0], sums[p][v][1]);
      }
    }
  }
  // Into the tile, or added to what it holds.
  template <bool add>
  FASTRNN_INLINE void store(float* tile) const {
#pragma GCC unroll 4
    for (int p = 0; p < kRowPairs; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        V low, high;
        exchange(sums[p][v][0], sums[p][v][1], low, high);
        store<add>(tile + (2 * p * NV + v) * W, low);
        if (2 * p + 1 < MR) store<add>(tile + ((2 * p + 1) * NV + v) * W, high);
      }
    }
  }
  // left: rows in pairs, from one of them to the next 2 * W elements. right: [vectors*W][4].
  FASTRNN_BF16 __attribute__((always_inline)) inline void multiply_add(const uint16_t* left, const uint16_t* right) {
    TermRegister rows[kRowPairs];
#pragma GCC unroll 4
    for (int p = 0; p < kRowPairs; ++p) {
      rows[p] = 2 * p + 1 < MR ? load_terms(left + 2 * p * W) : load_four_terms(left + 2 * p * W);
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const uint16_t* const at = right + v * W * kDotTerms;
      const TermRegister columns[2] = {load_terms(at), load_terms(at + 2 * kDotTerms)};
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) {
#pragma GCC unroll 4
        for (int p = 0; p < kRowPairs; ++p) multiply_add_two_by_two(sums[p][v][c], rows[p], columns[c]);
      }
    }
  }

 private:
  template <bool add>
  static FASTRNN_INLINE void store(float* to, V sum) {
    S::store(to, add ? S::load(to) + sum : sum);
  }
  // Two rows of four become two halves of both, or back.
  static FASTRNN_INLINE void exchange(V a, V b, V& low, V& high) {
    low = (V)vzip1q_f64((float64x2_t)a, (float64x2_t)b);
    high = (V)vzip2q_f64((float64x2_t)a, (float64x2_t)b);
  }
};

// See DotKernel.
template <int MR, int NV>
FASTRNN_BF16 void dot_kernel(float* tile, const uint16_t* a, int64_t block_stride, const uint16_t* b, int64_t K,
                             const char* ahead) {
  constexpr int W = Simd<float>::W;
  static_assert(W == kDotTerms);
  TwoByTwo<MR, NV> acc;
  acc.load(tile);
  const int64_t ahead_step = ahead ? 64 * W : 0;
  if (!ahead) ahead = reinterpret_cast<const char*>(b);
#pragma GCC unroll 1
  for (; K > 0; K -= W, a += block_stride, b += NV * W * kDotTerms, ahead += ahead_step) {
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) __builtin_prefetch(ahead + 64 * i, 0, 2);
    acc.multiply_add(a, b);
  }
  acc.template store<false>(tile);
}

// See DotTransposed. Every sum begins from zero once in kJoinedRows rows, as transposed_kernel's: fewer roundings
// would be lost in those of the operands.
constexpr int64_t kJoinedRows = 256;

template <int MR, int NV>
FASTRNN_BF16 void dot_transposed(float* tile, const uint16_t* a, const uint16_t* b, int64_t rows) {
  using S = Simd<float>;
  static_assert(MR <= S::W);
#pragma GCC unroll 1
  for (int64_t r = 0; r < rows;) {
    const int64_t end = min_of(rows, r + kJoinedRows);
    TwoByTwo<MR, NV> acc;
    acc.clear();
#pragma GCC unroll 1
    for (; r < end; r += kDotTerms, a += S::W * kDotTerms, b += NV * S::W * kDotTerms) acc.multiply_add(a, b);
    acc.template store<true>(tile);
    forget_tile();
  }
}

// The sum of all rows of a block whose rows were joined.
FASTRNN_BF16 inline Simd<float>::V sum_joined_rows(const uint16_t* a, int64_t rows) {
  using V = Simd<float>::V;
  constexpr int W = Simd<float>::W, kChains = 2;
  const TermRegister ones = {0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80};
  V total{};
  for (int64_t r = 0; r < rows;) {
    const int64_t end = min_of(rows, r + kJoinedRows);
    V sums[kChains][2] = {};  // of two units each, their terms two and two
    for (; r < end; r += kDotTerms * kChains) {
#pragma GCC unroll 2
      for (int j = 0; j < kChains; ++j) {
        if (r + kDotTerms * j >= end) break;
        const uint16_t* const units = a + (r + kDotTerms * j) * W;
        asm("bfdot %0.4s, %1.8h, %2.8h" : "+w"(sums[j][0]) : "w"(load_terms(units)), "w"(ones));
        asm("bfdot %0.4s, %1.8h, %2.8h" : "+w"(sums[j][1]) : "w"(load_terms(units + 2 * kDotTerms)), "w"(ones));
      }
    }
    total += (V)vpaddq_f32((float32x4_t)(sums[0][0] + sums[1][0]), (float32x4_t)(sums[0][1] + sums[1][1]));
    r = end;
  }
  return total;
}

// n of W elements, and zeros.
FASTRNN_INLINE void copy_half(uint16_t* to, const uint16_t* from, int n) {
  constexpr int W = Simd<float>::W;
  if (n >= W) return vst1_u16(to, vld1_u16(from));
  for (int j = 0; j < W; ++j) to[j] = j < n ? from[j] : 0;
}

// n lanes of four rows from `at` on (zeros where one is null) as fours; zeros beyond.
FASTRNN_INLINE void store_terms(uint16_t* out, const uint16_t* const (&rows)[kDotTerms], int64_t at, int n) {
  constexpr int W = Simd<float>::W;
  if (n >= W && rows[kDotTerms - 1]) {
    const uint16x4x4_t fours = {vld1_u16(rows[0] + at), vld1_u16(rows[1] + at), vld1_u16(rows[2] + at),
                                vld1_u16(rows[3] + at)};
    return vst4_u16(out, fours);
  }
  for (int j = 0; j < W; ++j, out += kDotTerms) {
    for (int i = 0; i < kDotTerms; ++i) out[i] = j < n && rows[i] ? rows[i][at + j] : 0;
  }
}

// Four rows of W, one after the other, become W fours in their place.
FASTRNN_INLINE void join_rows(uint16_t* rows) {
  const uint16_t* const each[kDotTerms] = {rows, rows + 4, rows + 8, rows + 12};
  store_terms(rows, each, 0, Simd<float>::W);
}

// A gate panel of fours: [depth(K)/4][vectors*W][4].
inline void pack_terms(const uint16_t* weight, int64_t ld, int G, const Panels<float>& units, int64_t panel,
                       int64_t K, uint16_t* out) {
  constexpr int W = Simd<float>::W;
  const int blocks = units.blocks_of(panel);
  for (int64_t k = 0; k < K; k += kDotTerms) {
    const int n = static_cast<int>(min_of<int64_t>(kDotTerms, K - k));
    for (int u = 0; u < blocks; ++u) {
      const int64_t block = units.first_block(panel) + u;
      const int lanes = units.lanes(block);
      for (int g = 0; g < G; ++g) {
        const uint16_t* row = weight + (g * units.length + block * W) * ld + k;
        for (int j = 0; j < W; ++j, row += ld, out += kDotTerms) copy_half(out, row, j < lanes ? n : 0);
      }
    }
  }
}

#undef FASTRNN_BF16

}  // namespace
}  // namespace fastrnn
