// The dot instruction of Arm for Bf16Operand (operand.inl): BFDOT multiplies and adds two bfloat16 a lane, by
// element, with the same panels of pairs. A register holds W = 4 consecutive elements of a row of the left operand,
// two pairs.
#pragma once
#include "cpu/product/neon.inl"
#include "cpu/product/pack.inl"

#define FASTRNN_HAS_BF16_DOT

namespace fastrnn {
namespace {

typedef uint16_t HalfRegister __attribute__((vector_size(8)));
typedef uint16_t HalfRegisterAt __attribute__((vector_size(8), aligned(2), may_alias));
typedef uint32_t PairAt __attribute__((aligned(2), may_alias));
typedef uint16_t PairRegister __attribute__((vector_size(16)));
typedef uint16_t PairRegisterAt __attribute__((vector_size(16), aligned(2), may_alias));

// acc += b's pairs times pair `lane` of a.
template <int lane>
__attribute__((always_inline, target("arch=armv8.2-a+bf16"))) inline void dot_lane(Simd<float>::V& acc,
                                                                                   PairRegister b, HalfRegister a) {
  asm("bfdot %0.4s, %1.8h, %2.2h[%3]" : "+w"(acc) : "w"(b), "w"(a), "i"(lane));
}
// The same where a holds four pairs.
template <int lane>
__attribute__((always_inline, target("arch=armv8.2-a+bf16"))) inline void dot_lane(Simd<float>::V& acc,
                                                                                   PairRegister b, PairRegister a) {
  asm("bfdot %0.4s, %1.8h, %2.2h[%3]" : "+w"(acc) : "w"(b), "w"(a), "i"(lane));
}

// See DotKernel.
template <int MR, int NV>
__attribute__((target("arch=armv8.2-a+bf16"))) void dot_kernel(float* tile, const uint16_t* a, int64_t block_stride,
                                                               const uint16_t* b, int64_t K, const char* ahead) {
  constexpr int W = Simd<float>::W;
  constexpr bool kWholeRows = (NV + 1) * MR + 2 <= kNeonRegisters;
  Simd<float>::V acc[MR][NV];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = *reinterpret_cast<Simd<float>::Unaligned*>(tile + (m * NV + v) * W);
  }
  const int64_t ahead_step = ahead ? 64 : 0;
  if (!ahead) ahead = reinterpret_cast<const char*>(b);
#pragma GCC unroll 1
  for (; K > 0; K -= W, a += block_stride) {
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i, ahead += ahead_step) __builtin_prefetch(ahead, 0, 2);
    HalfRegister rows[MR];
    if constexpr (kWholeRows) {
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) rows[m] = *reinterpret_cast<const HalfRegisterAt*>(a + m * W);
    }
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair, b += 2 * W * NV) {
      if (pair && K <= 2) break;
      if constexpr (kWholeRows) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const PairRegister right = *reinterpret_cast<const PairRegisterAt*>(b + v * 2 * W);
#pragma GCC unroll 8
          for (int m = 0; m < MR; ++m) {
            pair ? dot_lane<1>(acc[m][v], right, rows[m]) : dot_lane<0>(acc[m][v], right, rows[m]);
          }
        }
      } else {
        PairRegister right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) right[v] = *reinterpret_cast<const PairRegisterAt*>(b + v * 2 * W);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          HalfRegister left;  // loaded by name, or it would stay in a register for the second pair
          asm("ldr %s0, %1" : "=w"(left) : "m"(*reinterpret_cast<const PairAt*>(a + m * W + 2 * pair)));
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) dot_lane<0>(acc[m][v], right[v], left);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) *reinterpret_cast<Simd<float>::Unaligned*>(tile + (m * NV + v) * W) = acc[m][v];
  }
}

// See DotTransposed. Every sum begins from zero once in kPairedRows rows, as transposed_kernel's: fewer roundings
// would be lost in those of the operands.
constexpr int64_t kPairedRows = 256;

template <int MR, int NV>
__attribute__((target("arch=armv8.2-a+bf16"))) void dot_transposed(float* tile, const uint16_t* a, const uint16_t* b,
                                                                   int64_t rows) {
  constexpr int W = Simd<float>::W;
  static_assert(MR <= W);
#pragma GCC unroll 1
  for (int64_t r = 0; r < rows;) {
    const int64_t end = min_of(rows, r + kPairedRows);
    Simd<float>::V sums[MR][NV];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[m][v] = Simd<float>::V{};
    }
#pragma GCC unroll 1
    for (; r < end; r += 2, a += 2 * W, b += NV * 2 * W) {
      PairRegister left{};
      HalfRegister single[MR];
      if constexpr (MR == W) {  // a whole block
        left = *reinterpret_cast<const PairRegisterAt*>(a);
      } else {
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) {
          asm("ldr %s0, %1" : "=w"(single[m]) : "m"(*reinterpret_cast<const PairAt*>(a + 2 * m)));
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const PairRegister right = *reinterpret_cast<const PairRegisterAt*>(b + v * 2 * W);
        if constexpr (MR == W) {
          dot_lane<0>(sums[0][v], right, left);
          dot_lane<1>(sums[1][v], right, left);
          dot_lane<2>(sums[2][v], right, left);
          dot_lane<3>(sums[3][v], right, left);
        } else {
#pragma GCC unroll 4
          for (int m = 0; m < MR; ++m) dot_lane<0>(sums[m][v], right, single[m]);
        }
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float* const sum = tile + (m * NV + v) * W;
        *reinterpret_cast<Simd<float>::Unaligned*>(sum) =
            *reinterpret_cast<Simd<float>::Unaligned*>(sum) + sums[m][v];
      }
    }
    forget_tile();
  }
}

// The sum of all rows of a block of pairs of rows.
__attribute__((target("arch=armv8.2-a+bf16"))) inline Simd<float>::V sum_paired_rows(const uint16_t* a,
                                                                                     int64_t rows) {
  constexpr int W = Simd<float>::W, kChains = 4;
  const HalfRegister ones = {0x3f80, 0x3f80, 0x3f80, 0x3f80};
  Simd<float>::V total{};
  for (int64_t r = 0; r < rows;) {
    const int64_t end = min_of(rows, r + kPairedRows);
    Simd<float>::V sums[kChains] = {};
    for (; r < end; r += 2 * kChains) {
#pragma GCC unroll 4
      for (int j = 0; j < kChains; ++j) {
        if (r + 2 * j >= end) break;
        dot_lane<0>(sums[j], *reinterpret_cast<const PairRegisterAt*>(a + (r + 2 * j) * W), ones);
      }
    }
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
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

// n lanes of two rows (the other zero where it is null) as pairs; zeros beyond.
FASTRNN_INLINE void store_pairs(uint16_t* out, const uint16_t* one, const uint16_t* other, int n) {
  constexpr int W = Simd<float>::W;
  if (n >= W && other) {
    const uint16x4x2_t pairs = vzip_u16(vld1_u16(one), vld1_u16(other));
    vst1_u16(out, pairs.val[0]);
    vst1_u16(out + W, pairs.val[1]);
    return;
  }
  for (int j = 0; j < W; ++j) {
    out[2 * j] = j < n ? one[j] : 0;
    out[2 * j + 1] = j < n && other ? other[j] : 0;
  }
}

// Two rows of W, one after the other, become W pairs in their place.
FASTRNN_INLINE void pair_two_rows(uint16_t* rows) {
  constexpr int W = Simd<float>::W;
  const uint16x4x2_t pairs = vzip_u16(vld1_u16(rows), vld1_u16(rows + W));
  vst1_u16(rows, pairs.val[0]);
  vst1_u16(rows + W, pairs.val[1]);
}

// A gate panel of pairs: [depth(K)/2][vectors*W][2].
inline void pack_pairs(const uint16_t* weight, int64_t ld, int G, const Panels<float>& units, int64_t panel,
                       int64_t K, uint16_t* out) {
  constexpr int W = Simd<float>::W;
  const int blocks = units.blocks_of(panel);
  for (int64_t k = 0; k < K; k += 2) {
    const bool whole = k + 1 < K;
    for (int u = 0; u < blocks; ++u) {
      const int64_t block = units.first_block(panel) + u;
      const int lanes = units.lanes(block);
      for (int g = 0; g < G; ++g, out += 2 * W) {
        const uint16_t* row = weight + (g * units.length + block * W) * ld + k;
        for (int j = 0; j < W; ++j, row += ld) {
          out[2 * j] = j < lanes ? row[0] : 0;
          out[2 * j + 1] = j < lanes && whole ? row[1] : 0;
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastrnn
