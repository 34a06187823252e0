// Products with weights where they lie, for rows enough to fill the lanes and a call that reads each weight once.
//
// Elsewhere a weight is a lane of the right operand, which takes the packing of every panel: for one step of 32 rows
// that is a third of the time on a Zen 4. Here the lanes are rows of the batch, and a weight is broadcast from its
// place: 8 rows of a weight by two vectors of rows run at 99% of the multiply-adds, from the first read on. What is
// transposed are the sums, 16 units of a gate by 16 rows at a time, and the rows of the batch once.
#pragma once
#include "cpu/product/tile.inl"

namespace fastrnn {
namespace {

#if defined(FASTRNN_AVX512)
constexpr bool kLies = true;
#else
constexpr bool kLies = false;  // 16 registers hold too few sums of 32 rows
#endif
constexpr int kLyingUnits = 8;    // of a tile
constexpr int kLyingVectors = 2;  // of rows

// Rows of a blocked operand (tile.inl) as columns: [rows / (W * kLyingVectors)][K][W * vectors], zero beyond `rows`.
template <class T>
int64_t columns_size(int64_t rows, int64_t K) {
  return ceil_div(rows, Simd<T>::W) * Simd<T>::W * ceil_div(K, Simd<T>::W) * Simd<T>::W;
}
template <class T>
void make_columns(const T* a, int64_t block_stride, int64_t rows, int64_t K, T* out) {
  using S = Simd<T>;
  constexpr int W = S::W;
  for (int64_t first = 0; first < rows; first += W * kLyingVectors) {
    const int vectors = static_cast<int>(min_of<int64_t>(kLyingVectors, ceil_div(rows - first, W)));
    for (int64_t k = 0; k < K; k += W) {
      for (int v = 0; v < vectors; ++v) {
        typename S::V block[W];
        const T* from = a + k / W * block_stride + (first + v * W) * W;
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) block[j] = first + v * W + j < rows ? S::load(from + j * W) : typename S::V{};
        transpose<T>(block);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) S::store(out + ((k + j) * vectors + v) * W, block[j]);
      }
    }
    out += ceil_div(K, W) * W * vectors * W;
  }
}

// sums[u][v] = the products of kLyingUnits rows of `weight`, which lie ld elements apart, with NV vectors of columns.
// In blocks of terms, as every sum (tile.inl).
template <class T, int NV>
__attribute__((noinline)) void lying_kernel(const T* weight, int64_t ld, const T* columns, int64_t K, T* sums) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W, kSteps = 4;
  for (int64_t k = 0; k < K;) {
    const int64_t end = min_of(K, k + kSumBlock);
    V acc[kLyingUnits][NV];
#pragma GCC unroll 8
    for (int u = 0; u < kLyingUnits; ++u) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[u][v] = V{};
    }
    const auto add = [&](int step) __attribute__((always_inline)) {
      V row[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        row[v] = S::load(columns + (step * NV + v) * W);
        in_register(row[v]);
      }
#pragma GCC unroll 8
      for (int u = 0; u < kLyingUnits; ++u) {
        const V value = S::broadcast(weight[u * ld + step]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) multiply_add<T>(acc[u][v], value, row[v]);
      }
    };
#pragma GCC unroll 1
    for (; k + kSteps <= end; k += kSteps, weight += kSteps, columns += kSteps * NV * W) {
#pragma GCC unroll 4
      for (int step = 0; step < kSteps; ++step) add(step);
    }
#pragma GCC unroll 1
    for (; k < end; ++k, ++weight, columns += NV * W) add(0);
    const bool first = k <= kSumBlock;
#pragma GCC unroll 8
    for (int u = 0; u < kLyingUnits; ++u) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        T* const sum = sums + (u * kLyingVectors + v) * W;
        S::store(sum, first ? acc[u][v] : S::load(sum) + acc[u][v]);
      }
    }
    forget_memory();
  }
}

// out[r] += the products of `lanes` rows of `weight` where they lie with row r of the columns' rows. A row of out has
// out_stride elements, and behind it what a vector reads.
template <class T>
void add_lying(T* out, int64_t out_stride, const T* weight, int lanes, int64_t K, const T* columns, int64_t rows) {
  using S = Simd<T>;
  constexpr int W = S::W;
  for (int64_t first = 0; first < rows; first += W * kLyingVectors) {
    const int vectors = static_cast<int>(min_of<int64_t>(kLyingVectors, ceil_div(rows - first, W)));
    alignas(64) T sums[W * kLyingVectors * W];
    for (int unit = 0; unit < lanes; unit += kLyingUnits) {
      // The last rows of a weight, where a tile would end behind it; no block has fewer units than a tile
      // (Forward::lies_).
      const int from = min_of(unit, lanes - kLyingUnits);
      T* const to = sums + from * kLyingVectors * W;
      vectors == 2 ? lying_kernel<T, 2>(weight + from * K, K, columns, K, to)
                   : lying_kernel<T, 1>(weight + from * K, K, columns, K, to);
    }
    for (int v = 0; v < vectors; ++v) {
      typename S::V block[W];
#pragma GCC unroll 16
      for (int u = 0; u < W; ++u)
        block[u] = u < lanes ? S::load(sums + (u * kLyingVectors + v) * W) : typename S::V{};
      transpose<T>(block);
      alignas(64) T turned[W * W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) S::store(turned + r * W, block[r]);
      const int64_t row = first + v * W;
      for (int r = 0; r < min_of<int64_t>(W, rows - row); ++r) {
        T* const sum = out + (row + r) * out_stride;
        S::store_n(sum, S::load(sum) + S::load(turned + r * W), lanes);
      }
    }
    columns += ceil_div(K, W) * W * vectors * W;
  }
}

}  // namespace
}  // namespace fastrnn
