// Bf16Operand of operand.inl on Arm: BFDOT multiplies and adds two bfloat16 a lane, by element, with the same panels
// of pairs. A register holds W = 4 consecutive elements of a row of the left operand, two pairs.
#pragma once
#include "cpu/product/neon.inl"
#include "cpu/product/pack.inl"

#define FASTRNN_HAS_BF16_DOT

namespace fastrnn {
namespace {

using DotKernel = void (*)(float* tile, const uint16_t* a, int64_t block_stride, const uint16_t* b, int64_t K,
                           const char* ahead);

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

// tile[m][v] += A[m][k] * B[k][v] + A[m][k+1] * B[k+1][v].
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

  static void pack(const void* weight, int64_t ld, Dtype, int G, const Panels<float>& units, int64_t panel, int64_t K,
                   E* out, int /*of_part*/ = 0) {
    constexpr int W = S::W;
    const int blocks = units.blocks_of(panel);
    const E* const from = static_cast<const E*>(weight);
    for (int64_t k = 0; k < K; k += 2) {
      const bool whole = k + 1 < K;
      for (int u = 0; u < blocks; ++u) {
        const int64_t block = units.first_block(panel) + u;
        const int lanes = units.lanes(block);
        for (int g = 0; g < G; ++g, out += 2 * W) {
          const E* row = from + (g * units.length + block * W) * ld + k;
          for (int j = 0; j < W; ++j, row += ld) {
            out[2 * j] = j < lanes ? row[0] : 0;
            out[2 * j + 1] = j < lanes && whole ? row[1] : 0;
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

}  // namespace
}  // namespace fastrnn
