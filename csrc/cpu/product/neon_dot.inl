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
