// What the operands of both passes' products are stored as. The accumulators are the compute type T in
// every case.
//
//   NaturalOperand<T>   the compute type itself
//   Bf16Operand         bfloat16 pairs for the dot instruction of AVX512-BF16 or Arm, which multiplies
//                       and adds two of them a lane: for bfloat16 layers, whose weights and inputs it
//                       takes as they are; h is rounded to bfloat16 as the output is, and the gradients
//                       of gates are as torch's own layer rounds them
//
// An operand type gives: E, the element; depth(K), rows of a packed panel; load and store of one
// vector of T, and put of a piece of a layer's row; pack, pack_rows and multiply on panels
// [depth(K)][vectors*W] (pairs: [depth(K)/2][vectors*W][2]).
//
// Its kTileSize and tile_rows say how large a tile of sums may be.
//
// The gradient of a weight multiplies a left operand by its rows. Pairs are of rows then: pair_rows makes
// [M/2][W][2] of the block of M rows that was [M][W], spread(M) rows are allocated, right_rows copies rows
// of the layer, and multiply_transposed and sum_rows add up over them.
#pragma once
#include "cpu/product/pack.inl"
#if defined(FASTRNN_AVX512_BF16)
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
  static constexpr bool kPairs = false;
  static constexpr int kTileSize = fastrnn::kTileSize;
  static constexpr int tile_rows(int vectors) { return fastrnn::tile_rows(vectors); }
  static constexpr Dtype kDtype = sizeof(T) == 8 ? Dtype::kDouble : Dtype::kFloat;

  static FASTRNN_INLINE int64_t depth(int64_t K) { return K; }
  static FASTRNN_INLINE int64_t spread(int64_t rows) { return spread_rows(rows); }
  static FASTRNN_INLINE typename S::V load(const E* p) { return S::load(p); }
  static FASTRNN_INLINE void store(E* p, typename S::V v) { S::store(p, v); }
  // n elements of a row of the layer from k on, and zeros.
  static FASTRNN_INLINE void put(E* p, const void* row, int64_t k, int n, Dtype dtype) {
    S::store(p, load_as<T>(row, k, n, dtype));
  }
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
  // A row panel of `gates` weights of K rows each.
  static void pack_rows(const void* weight, int64_t ld, Dtype dtype, const Panels<T>& columns, int64_t panel,
                        int gates, int64_t K, E* out) {
    pack_row_panel<T>(weight, ld, dtype, columns, panel, gates * K, out);
  }
  static FASTRNN_INLINE void multiply(int rows, int vectors, T* tile, const E* a, int64_t block_stride, const E* b,
                                      int64_t K, const char* ahead) {
    multiply(rows, vectors, tile, a, block_stride, b, vectors * S::W, K, ahead);
  }
  // b: packed, or where it lies.
  static FASTRNN_INLINE void multiply(int rows, int vectors, T* tile, const E* a, int64_t block_stride, const E* b,
                                      int64_t ld, int64_t K, const char* ahead) {
    fastrnn::multiply<T>(rows, vectors, tile, a, block_stride, b, ld, K, ahead);
  }
  // The same where the sums begin with those in `from`, see ProductKernel.
  static FASTRNN_INLINE void multiply_from(int rows, int vectors, T* tile, const T* from, int64_t from_row,
                                           const E* a, int64_t block_stride, const E* b, int64_t K,
                                           const char* ahead) {
    kKernels<T>.product[vectors - 1][rows - 1](tile, from, from_row, a, block_stride, b, vectors * S::W, K, ahead);
  }

  template <class Row>
  static FASTRNN_INLINE void right_rows(Row&& row, int64_t count, Dtype dtype, const Panels<T>& columns,
                                        int64_t panel, E* out) {
    const int vectors = columns.blocks_of(panel);
    const int64_t first = columns.first_block(panel);
    for (int64_t r = 0; r < count; ++r) {
      const char* from = row(r);
      for (int v = 0; v < vectors; ++v, out += S::W) {
        S::store(out, load_as<T>(from, (first + v) * S::W, columns.lanes(first + v), dtype));
      }
    }
  }
  // tile[m][v] += sum over `count` rows of a block of the left operand, from its lane m0 on, times the right rows.
  static FASTRNN_INLINE void multiply_transposed(int rows, int vectors, T* tile, const E* a, int64_t m0, const E* b,
                                                 int64_t count) {
    fastrnn::multiply_transposed<T>(rows, vectors, tile, a + m0, b, count);
  }
  static typename S::V sum_rows(const E* a, int64_t count) {
    typename S::V sum{};
    for (int64_t r = 0; r < count;) {
      const int64_t end = min_of(count, r + 4 * kRowBlock);
      typename S::V sums[4] = {};
      for (; r + 4 <= end; r += 4) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sums[j] += S::load(a + (r + j) * S::W);
      }
      for (; r < end; ++r) sums[0] += S::load(a + r * S::W);
      sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    return sum;
  }
};

#ifdef FASTRNN_HAS_BF16_DOT
// product_kernel on pairs, dot_kernel<MR, NV>: tile[m][v] += A[m][k] * B[k][v] + A[m][k+1] * B[k+1][v].
using DotKernel = void (*)(float* tile, const uint16_t* a, int64_t block_stride, const uint16_t* b, int64_t K,
                           const char* ahead);

// transposed_kernel on pairs of rows, dot_transposed<MR, NV>: a at its first lane's pair in a block [rows/2][W][2], b
// [rows/2][NV*W][2]. An odd row out has zeros for the other of its pair.
using DotTransposed = void (*)(float* tile, const uint16_t* a, const uint16_t* b, int64_t rows);

struct DotKernels {
  DotKernel kernels[kMaxVectors][kMaxRows];
  DotTransposed transposed[kMaxVectors][kMaxRows];

  template <int NV, int MR>
  constexpr void fill() {
    if constexpr (MR <= fastrnn::tile_rows(NV)) {
      kernels[NV - 1][MR - 1] = dot_kernel<MR, NV>;
      if constexpr (MR <= Simd<float>::W) transposed[NV - 1][MR - 1] = dot_transposed<MR, NV>;
    }
    if constexpr (MR < kMaxRows) {
      fill<NV, MR + 1>();
    } else if constexpr (NV < kMaxVectors) {
      fill<NV + 1, 1>();
    }
  }
  constexpr DotKernels() : kernels{}, transposed{} { fill<1, 1>(); }
};
constexpr DotKernels kDotKernels{};

struct Bf16Operand {
  using E = uint16_t;
  using S = Simd<float>;
  static constexpr bool kRounds = true, kPairs = true, kClosesGates = false;
  static constexpr int kTileSize = fastrnn::kTileSize;
  static constexpr int tile_rows(int vectors) { return fastrnn::tile_rows(vectors); }
  static constexpr Dtype kDtype = Dtype::kBFloat16;

  static FASTRNN_INLINE int64_t depth(int64_t K) { return (K + 1) / 2 * 2; }
  // Whole pairs, an odd number of them.
  static FASTRNN_INLINE int64_t spread(int64_t rows) { return 2 * spread_rows(ceil_div(rows, 2)); }
  static FASTRNN_INLINE S::V load(const E* p) { return load_as<float>(p, 0, S::W, Dtype::kBFloat16); }
  static FASTRNN_INLINE void store(E* p, S::V v) { store_as<float>(p, 0, v, S::W, Dtype::kBFloat16); }
  static FASTRNN_INLINE void put(E* p, const void* row, int64_t k, int n, Dtype) {
    copy_half(p, static_cast<const E*>(row) + k, n);
  }
  // The last pair of an odd number of units reads one lane more, times 0. An infinite input makes NaN of it.
  static FASTRNN_INLINE void end_row(E* p, int lanes) {
    if (lanes & 1) p[lanes] = 0;
  }

  static void pack(const void* weight, int64_t ld, Dtype, int G, const Panels<float>& units, int64_t panel, int64_t K,
                   E* out, int /*of_part*/ = 0, int /*close_vectors*/ = 0) {
    pack_pairs(static_cast<const E*>(weight), ld, G, units, panel, K, out);
  }
  static void pack_rows(const void* weight, int64_t ld, Dtype dtype, const Panels<float>& columns, int64_t panel,
                        int gates, int64_t K, E* out) {
    const int64_t row = ld * static_cast<int64_t>(sizeof(E)), gate = depth(K) * columns.blocks_of(panel) * S::W;
    const char* from = static_cast<const char*>(weight);
    for (int g = 0; g < gates; ++g, from += K * row, out += gate) {
      right_rows([&](int64_t k) { return from + k * row; }, K, dtype, columns, panel, out);
    }
  }
  static FASTRNN_INLINE void multiply(int rows, int vectors, float* tile, const E* a, int64_t block_stride,
                                      const E* b, int64_t K, const char* ahead) {
    kDotKernels.kernels[vectors - 1][rows - 1](tile, a, block_stride, b, K, ahead);
  }
  static FASTRNN_INLINE void multiply(int rows, int vectors, float* tile, const E* a, int64_t block_stride,
                                      const E* b, int64_t /*ld*/, int64_t K, const char* ahead) {
    multiply(rows, vectors, tile, a, block_stride, b, K, ahead);
  }

  template <class Row>
  static FASTRNN_INLINE void right_rows(Row&& row, int64_t count, Dtype, const Panels<float>& columns, int64_t panel,
                                        E* out) {
    const int vectors = columns.blocks_of(panel);
    const int64_t first = columns.first_block(panel);
    for (int64_t r = 0; r < count; r += 2) {
      const E* one = reinterpret_cast<const E*>(row(r));
      const E* other = r + 1 < count ? reinterpret_cast<const E*>(row(r + 1)) : nullptr;
      for (int v = 0; v < vectors; ++v, out += 2 * S::W) {
        const int64_t at = (first + v) * S::W;
        store_pairs(out, one + at, other ? other + at : nullptr, columns.lanes(first + v));
      }
    }
  }
  static void pair_rows(E* block, int64_t rows) {
    if (rows & 1) store(block + rows * S::W, S::V{});
    for (int64_t r = 0; r < rows; r += 2) pair_two_rows(block + r * S::W);
  }
  static FASTRNN_INLINE void multiply_transposed(int rows, int vectors, float* tile, const E* a, int64_t m0,
                                                 const E* b, int64_t count) {
    kDotKernels.transposed[vectors - 1][rows - 1](tile, a + 2 * m0, b, count);
  }
  static S::V sum_rows(const E* a, int64_t count) { return sum_paired_rows(a, count); }
};
#endif

}  // namespace
}  // namespace fastrnn
