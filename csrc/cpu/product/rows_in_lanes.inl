// Products whose lanes are rows of the batch, with weights where they lie: for a call that reads each weight once.
//
// Elsewhere a weight is a lane of the right operand, which takes the packing of every panel: of one step of 32 rows
// that was a quarter of the time on a Zen 4. Here a weight is broadcast from its place, and some rows of a weight by
// two vectors of rows of the batch run at 99% of the multiply-adds from the first read on. What is transposed are the
// rows, once, and the sums, a block of units of a gate by a vector of rows at a time.
#pragma once
#include "cpu/product/tile.inl"

namespace fastrnn {
namespace {

// A tile: rows of a weight by vectors of rows of the batch, two of them or a last one by itself; and as many as fill
// it, or the latency of additions shows.
#if defined(FASTRNN_AVX512)
constexpr int kLaneUnits = 8, kLaneFull = 1;
#elif defined(FASTRNN_AVX2)
constexpr int kLaneUnits = 4, kLaneFull = 2;
#else
constexpr int kLaneUnits = 0, kLaneFull = 1;  // not tried
#endif
constexpr int kLaneVectors = 2;

// Rows of a blocked operand (tile.inl) as lanes: [rows / (W * kLaneVectors)][K][W * vectors], zero beyond `rows`.
template <class T>
int64_t rows_in_lanes_size(int64_t rows, int64_t K) {
  return ceil_div(rows, Simd<T>::W) * Simd<T>::W * ceil_div(K, Simd<T>::W) * Simd<T>::W;
}
template <class T>
void rows_into_lanes(const T* a, int64_t block_stride, int64_t rows, int64_t K, T* out) {
  using S = Simd<T>;
  constexpr int W = S::W;
  for (int64_t first = 0; first < rows; first += W * kLaneVectors) {
    const int vectors = static_cast<int>(min_of<int64_t>(kLaneVectors, ceil_div(rows - first, W)));
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

// sums[u][v] = the products of kLaneUnits rows of `weight`, which lie ld elements apart, with NV vectors of the
// batch. In blocks of terms, as every sum (tile.inl).
template <class T, int NV>
__attribute__((noinline)) void lanes_kernel(const T* weight, int64_t ld, const T* batch, int64_t K, T* sums) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W, kSteps = 4;
  const T* rows[kLaneUnits];
#pragma GCC unroll 8
  for (int u = 0; u < kLaneUnits; ++u) rows[u] = weight + u * ld;
  for (int64_t k = 0; k < K;) {
    const int64_t end = min_of(K, k + kSumBlock);
    const bool first = k == 0;
    V acc[kLaneUnits][NV];
#pragma GCC unroll 8
    for (int u = 0; u < kLaneUnits; ++u) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[u][v] = V{};
    }
    const auto add = [&](int term) __attribute__((always_inline)) {
      V row[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        row[v] = S::load(batch + (term * NV + v) * W);
        in_register(row[v]);
      }
#pragma GCC unroll 8
      for (int u = 0; u < kLaneUnits; ++u) {
        const V value = S::broadcast(rows[u][term]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) multiply_add<T>(acc[u][v], value, row[v]);
      }
    };
    const auto go_on = [&](int terms) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int u = 0; u < kLaneUnits; ++u) step(rows[u], terms);
      step(batch, terms * NV * W);
    };
#pragma GCC unroll 1
    for (; k + kSteps <= end; k += kSteps, go_on(kSteps)) {
#pragma GCC unroll 4
      for (int term = 0; term < kSteps; ++term) add(term);
    }
#pragma GCC unroll 1
    for (; k < end; ++k, go_on(1)) add(0);
#pragma GCC unroll 8
    for (int u = 0; u < kLaneUnits; ++u) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        T* const sum = sums + (u * kLaneVectors + v) * W;
        S::store(sum, first ? acc[u][v] : S::load(sum) + acc[u][v]);
      }
    }
    forget_memory();
  }
}

// out[r] += the products of `units` rows of `weight`, which lie K elements apart, with row r of the batch. A row of
// out has out_stride elements, and behind it what a vector reads. No fewer units than kLaneUnits.
template <class T>
void add_rows_in_lanes(T* out, int64_t out_stride, const T* weight, int units, int64_t K, const T* batch,
                       int64_t rows) {
  using S = Simd<T>;
  constexpr int W = S::W;
  if (K == 0) return;
  for (int64_t first = 0; first < rows; first += W * kLaneVectors) {
    const int vectors = static_cast<int>(min_of<int64_t>(kLaneVectors, ceil_div(rows - first, W)));
    alignas(64) T sums[W * kLaneVectors * W];
    for (int unit = 0; unit < units; unit += kLaneUnits) {
      const int from = min_of(unit, units - kLaneUnits);  // the last tile ends where the weight's rows do
      const auto kernel = vectors == kLaneVectors ? lanes_kernel<T, kLaneVectors> : lanes_kernel<T, 1>;
      kernel(weight + from * K, K, batch, K, sums + from * kLaneVectors * W);
    }
    for (int v = 0; v < vectors; ++v) {
      typename S::V block[W];
#pragma GCC unroll 16
      for (int u = 0; u < W; ++u) block[u] = u < units ? S::load(sums + (u * kLaneVectors + v) * W) : typename S::V{};
      transpose<T>(block);
      alignas(64) T turned[W * W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) S::store(turned + r * W, block[r]);
      const int64_t row = first + v * W;
      for (int64_t r = 0; r < min_of<int64_t>(W, rows - row); ++r) {
        T* const sum = out + (row + r) * out_stride;
        S::store_n(sum, S::load(sum) + S::load(turned + r * W), units);
      }
    }
    batch += ceil_div(K, W) * W * vectors * W;
  }
}

}  // namespace
}  // namespace fastrnn
