// What the operands of forward's products are stored as. The accumulators are the compute type T in
// every case.
//
//   NaturalOperand<T>   the compute type itself
//   Bf16Operand         bfloat16 pairs for the dot instruction of AVX512-BF16 or Arm, which multiplies
//                       and adds two of them a lane: for bfloat16 layers, whose weights and inputs it
//                       takes as they are; h is rounded to bfloat16 as the output is
//
// An operand type gives: E, the element; depth(K), rows of a packed panel; load and store of one
// vector of T; and pack, multiply on panels [depth(K)][vectors*W] (pairs: [depth(K)/2][vectors*W][2]).
#pragma once
#include "cpu/product/pack.inl"
#if defined(FASTRNN_AVX512)
#include "cpu/product/avx512_dot.inl"
#elif defined(FASTRNN_NEON)
#include "cpu/product/neon_dot.inl"
#endif

namespace fastrnn {
namespace {

template <class T>
struct NaturalOperand {
  using E = T;
  using S = Simd<T>;
  static constexpr bool kRounds = false;      // whether a stored state loses precision
  static constexpr bool kClosesGates = true;  // whether gates of a last block may lie close, see pack.inl

  static FASTRNN_INLINE int64_t depth(int64_t K) { return K; }
  static FASTRNN_INLINE typename S::V load(const E* p) { return S::load(p); }
  static FASTRNN_INLINE void store(E* p, typename S::V v) { S::store(p, v); }
  static FASTRNN_INLINE void end_row(E*, int) {}  // a product reads whole units
  // In parts of so many gates, or (0) in one; of a last block of units whose gates lie close (pack.inl) in so many
  // vectors a part, or (0) where they do not.
  static void pack(const void* weight, int64_t ld, Dtype dtype, int G, const Panels<T>& units, int64_t panel,
                   int64_t K, E* out, int of_part = 0, int close_vectors = 0) {
    const int gates = of_part ? of_part : G;
    for (int g = 0; g < G; g += gates) {
      if (close_vectors) {
        pack_close_gates<T>(weight, ld, dtype, g, gates, close_vectors, units, units.first_block(panel), K, out);
        out += K * close_vectors * S::W;
      } else {
        pack_gate_panel<T>(weight, ld, dtype, g, gates, units, panel, K, out);
        out += K * gates * units.blocks_of(panel) * S::W;
      }
    }
  }
  static FASTRNN_INLINE void multiply(int rows, int vectors, T* tile, const E* a, int64_t block_stride, const E* b,
                                      int64_t K, const char* ahead) {
    fastrnn::multiply<T>(rows, vectors, tile, a, block_stride, b, vectors * S::W, K, ahead);
  }
};

#ifdef FASTRNN_HAS_BF16_DOT
// product_kernel on pairs, dot_kernel<MR, NV>: tile[m][v] += A[m][k] * B[k][v] + A[m][k+1] * B[k+1][v].
using DotKernel = void (*)(float* tile, const uint16_t* a, int64_t block_stride, const uint16_t* b, int64_t K,
                           const char* ahead);

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
  static constexpr bool kRounds = true, kClosesGates = false;

  static FASTRNN_INLINE int64_t depth(int64_t K) { return (K + 1) / 2 * 2; }
  static FASTRNN_INLINE S::V load(const E* p) { return load_as<float>(p, 0, S::W, Dtype::kBFloat16); }
  static FASTRNN_INLINE void store(E* p, S::V v) { store_as<float>(p, 0, v, S::W, Dtype::kBFloat16); }
  // The last pair of an odd number of units reads one lane more, times 0. An infinite input makes NaN of it.
  static FASTRNN_INLINE void end_row(E* p, int lanes) {
    if (lanes & 1) p[lanes] = 0;
  }

  static void pack(const void* weight, int64_t ld, Dtype, int G, const Panels<float>& units, int64_t panel, int64_t K,
                   E* out, int /*of_part*/ = 0, int /*close_vectors*/ = 0) {
    pack_pairs(static_cast<const E*>(weight), ld, G, units, panel, K, out);
  }
  static FASTRNN_INLINE void multiply(int rows, int vectors, float* tile, const E* a, int64_t block_stride,
                                      const E* b, int64_t K, const char* ahead) {
    kDotKernels.kernels[vectors - 1][rows - 1](tile, a, block_stride, b, K, ahead);
  }
};
#endif

}  // namespace
}  // namespace fastrnn
