// Products of so few rows that packing the weight would cost more than it saves: dot products with the
// rows of the weight where they lie, each of which is read once.
#pragma once
#include "cpu/product/operand.inl"
#include "cpu/team.h"
#include "params/scan.h"

namespace fastrnn {
namespace {

template <bool b>
struct Constant {
  static constexpr bool value = b;
};

// Lane j of the result: the sum of v[j]'s lanes. By exchanges of lanes between two registers that are then added,
// half as many each time: a third of the work of summing each register by itself.
template <class T>
FASTRNN_INLINE typename Simd<T>::V sum_rows(typename Simd<T>::V (&v)[Simd<T>::W]) {
  using S = Simd<T>;
  constexpr int W = S::W;
#if defined(FASTRNN_AVX2)
  if constexpr (sizeof(T) == 4) {
    const auto pair = [&](int i) { return _mm256_hadd_ps((__m256)v[i], (__m256)v[i + 1]); };
    const __m256 low = _mm256_hadd_ps(pair(0), pair(2)), high = _mm256_hadd_ps(pair(4), pair(6));
    return (typename S::V)_mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                                        _mm256_permute2f128_ps(low, high, 0x31));
  }
#endif
  const auto halve = [&]<int s>() __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < W; i += 2 * s) {
      v[i] = shuffle<T, kLowLanes<T, s>>(v[i], v[i + s]) + shuffle<T, kHighLanes<T, s>>(v[i], v[i + s]);
    }
  };
  if constexpr (W > 1) halve.template operator()<1>();
  if constexpr (W > 2) halve.template operator()<2>();
  if constexpr (W > 4) halve.template operator()<4>();
  if constexpr (W > 8) halve.template operator()<8>();
  return v[0];
}

// out[m * out_stride + j] += weight[j] . a[m], j < rows <= W, m < MR: rows of a natural weight, K elements each,
// which are read once, times rows of a blocked operand. `next` (or null) is fetched meanwhile, at the same distances:
// the rows that come next.
template <class T>
using DotRows = void (*)(T* out, int64_t out_stride, const void* weight, int rows, int64_t K, const T* a,
                         int64_t block_stride, const void* next);

// Rows of the weight at once: as many sums as registers hold, in chains enough to hide the latency of an addition.
constexpr int dot_rows_at_once(int MR, int W) {
  const int most = kAccumulators == 24 ? 24 : 12;
  for (int rows = W; rows > 1; rows /= 2) {
    if (rows * MR <= most) return rows;
  }
  return 1;
}

// sums[j][m] = weight[j] . a[m] over [0, K) in blocks (tile.inl), lane by lane: R rows that begin `stride` elements
// apart, n at the end of a row where K is not a multiple of W. Behind them `a` may hold anything, NaN too, which the
// weights' zeros there would not take away: where the gates of a last block lie close (panels.inl), h of the units
// that there are not is made of what was in memory.
template <class T, Dtype kStorage, int MR, int R>
FASTRNN_INLINE void dot_block(typename Simd<T>::V (&sums)[R][MR], const void* weight, int64_t stride, int64_t K,
                              const T* a, int64_t block_stride, const void* next) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W;
  constexpr int64_t kSize = static_cast<int64_t>(size_of(kStorage));
  constexpr int kGroup = R < 4 ? R : 4;  // rows that one register's address reaches
  const int64_t row = stride * kSize;
  const char* w[R / kGroup];
#pragma GCC unroll 4
  for (int i = 0; i < R / kGroup; ++i) w[i] = static_cast<const char*>(weight) + i * kGroup * row;
  int64_t ahead = next ? static_cast<const char*>(next) - w[0] : 0;
#pragma GCC unroll 1
  for (int64_t k = 0; k < K;) {
    const int64_t end = min_of(K, k + kSumBlock * W);
    const bool first = k == 0;
    V block[R][MR];
#pragma GCC unroll 16
    for (int j = 0; j < R; ++j) {
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) block[j][m] = V{};
    }
    const auto add = [&](auto whole, int n) __attribute__((always_inline)) {
      V x[MR];
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
        x[m] = decltype(whole)::value ? S::load(a + m * W) : S::load_n(a + m * W, n);
      }
#pragma GCC unroll 16
      for (int j = 0; j < R; ++j) {
        const V weights = load_as<T>(w[j / kGroup] + j % kGroup * row, 0, decltype(whole)::value ? W : n, kStorage);
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) block[j][m] += weights * x[m];
      }
    };
#pragma GCC unroll 1
    for (; k + W <= end; k += W, a += block_stride) {
      if (ahead) {
#pragma GCC unroll 4
        for (int i = 0; i < R / kGroup; ++i) {
          const char* line = w[i];
          step(line, ahead);
#pragma GCC unroll 4
          for (int j = 0; j < kGroup; ++j) __builtin_prefetch(line + j * row);
        }
      }
      add(Constant<true>{}, W);
#pragma GCC unroll 4
      for (int i = 0; i < R / kGroup; ++i) step(w[i], W * kSize);
    }
    if (k < end) {
      add(Constant<false>{}, static_cast<int>(end - k));
      k = end;
    }
#pragma GCC unroll 16
    for (int j = 0; j < R; ++j) {
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) sums[j][m] = first ? block[j][m] : sums[j][m] + block[j][m];
    }
  }
}

// Whether a single row of an operand meets the weight's rows one after the other: what is read is one stream then, of
// which the processor fetches ahead more than of sixteen. A Zen 5 reads 1 MB at 168 GB/s so and at 132 with 16 rows
// at once, 4 MB at 129 and 116, 16 MB at 103 and 90. With registers of half the width twice as many loads are of the
// operand, which takes longer than it saves (118 and 133 at 1 MB); and so do the ends of short rows.
#ifdef FASTRNN_AVX512
constexpr bool kRowAfterRow = true;
#else
constexpr bool kRowAfterRow = false;
#endif
constexpr int64_t kLeastRow = 192;

// weight . a over [0, K), lane by lane, in chains and blocks (tile.inl).
template <class T, Dtype kStorage>
FASTRNN_INLINE typename Simd<T>::V dot_row(const void* weight, int64_t K, const T* a, int64_t block_stride) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W, kChains = 4;
  constexpr int64_t kVector = W * static_cast<int64_t>(size_of(kStorage));
  const char* w = static_cast<const char*>(weight);
  V sum{};
#pragma GCC unroll 1
  for (int64_t k = 0; k < K;) {
    const int64_t end = min_of(K, k + kSumBlock * kChains * W);
    V block[kChains] = {};
#pragma GCC unroll 1
    for (; k + kChains * W <= end; k += kChains * W, w += kChains * kVector) {
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c, a += block_stride) {
        block[c] += load_as<T>(w + c * kVector, 0, W, kStorage) * S::load(a);
      }
    }
#pragma GCC unroll 1
    for (; k < end; k += W, w += kVector, a += block_stride) {
      const int n = static_cast<int>(min_of<int64_t>(W, end - k));
      block[0] += load_as<T>(w, 0, n, kStorage) * S::load_n(a, n);
    }
    sum += (block[0] + block[1]) + (block[2] + block[3]);
  }
  return sum;
}

template <class T, Dtype kStorage, int MR>
void dot_rows(T* out, int64_t out_stride, const void* weight, int rows, int64_t K, const T* a, int64_t block_stride,
              const void* next) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W, R = dot_rows_at_once(MR, W);
  const char* w = static_cast<const char*>(weight);
  const int64_t row = K * static_cast<int64_t>(size_of(kStorage));
  V all[MR][W];
  const auto put = [&](V(&sums)[1][MR], int j) {
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) all[m][j] = sums[0][m];
  };
  if (MR == 1 && kRowAfterRow && K >= kLeastRow) {
#pragma GCC unroll 1
    for (int j = 0; j < rows; ++j) all[0][j] = dot_row<T, kStorage>(w + j * row, K, a, block_stride);
    for (int j = rows; j < W; ++j) all[0][j] = V{};
  } else if (rows == W) {
    for (int first = 0; first < W; first += R) {
      V sums[R][MR] = {};
      dot_block<T, kStorage, MR, R>(sums, w + first * row, K, K, a, block_stride,
                                    next ? static_cast<const char*>(next) + first * row : nullptr);
#pragma GCC unroll 16
      for (int j = 0; j < R; ++j) {
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) all[m][first + j] = sums[j][m];
      }
    }
  } else {  // the last block of units
    for (int j = 0; j < W; ++j) {
      V sums[1][MR] = {};
      if (j < rows) dot_block<T, kStorage, MR, 1>(sums, w + j * row, K, K, a, block_stride, nullptr);
      put(sums, j);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) {
    T* to = out + m * out_stride;
    S::store_n(to, S::load_n(to, rows) + sum_rows<T>(all[m]), rows);
  }
}

// By the type that the weight is stored in and the rows of the operand.
constexpr int kDotRows = 4;
template <class T, Dtype kStorage>
constexpr DotRows<T> dot_rows_of(int rows) {
  return rows == 1   ? dot_rows<T, kStorage, 1>
         : rows == 2 ? dot_rows<T, kStorage, 2>
         : rows == 3 ? dot_rows<T, kStorage, 3>
                     : dot_rows<T, kStorage, 4>;
}
template <class T>
constexpr DotRows<T> dot_rows_of(Dtype storage, int rows) {
  if constexpr (sizeof(T) == 8) {
    return dot_rows_of<T, Dtype::kDouble>(rows);
  } else {
    return storage == Dtype::kFloat      ? dot_rows_of<T, Dtype::kFloat>(rows)
           : storage == Dtype::kBFloat16 ? dot_rows_of<T, Dtype::kBFloat16>(rows)
                                         : dot_rows_of<T, Dtype::kHalf>(rows);
  }
}

// The product of a few rows of an SRU layer's input, see GateProductParams.
template <class T>
class GateProduct {
  using Operand = NaturalOperand<T>;
  static constexpr int W = Simd<T>::W;

 public:
  GateProduct(const GateProductParams& params, int workers, char* workspace) : p_(params), workers_(workers) {
    Arena arena{workspace};
    x_ = arena.take<T>(ceil_div(p_.I, W) * W * p_.B);
    bytes_ = arena.used;
  }

  size_t workspace_bytes() const { return bytes_; }

  // Lays x out for the workers, before they begin.
  void block_input() const {
    for (int64_t b = 0; b < p_.B; ++b) {
      const char* row = static_cast<const char*>(p_.x.data) + b * p_.x.row_stride * size_of(p_.dtype);
      block_row<T, Operand>(row, p_.I, p_.dtype, x_, p_.B, b);
    }
  }

  static void body(int64_t begin, int64_t end, void* self) {
    const GateProduct& product = *static_cast<GateProduct*>(self);
    for (int64_t r = begin; r < end; ++r) product.run(r);
  }

 private:
  void run(int64_t rank) const {
    const int64_t first = p_.O * rank / workers_ * p_.K, last = p_.O * (rank + 1) / workers_ * p_.K;
    for (int64_t row = 0; row < p_.B; row += kDotRows) {
      const int height = static_cast<int>(min_of<int64_t>(kDotRows, p_.B - row));
      const DotRows<T> dot = dot_rows_of<T>(p_.dtype, height);
      for (int64_t r = first; r < last; r += W) {
        const int count = static_cast<int>(min_of<int64_t>(W, last - r));
        alignas(64) T sums[kDotRows * W] = {};
        const char* weight = static_cast<const char*>(p_.weight) + r * p_.I * static_cast<int64_t>(size_of(p_.dtype));
        dot(sums, W, weight, count, p_.I, x_ + row * W, p_.B * W, nullptr);
        for (int j = 0; j < count; ++j) {
          const int64_t unit = (r + j) / p_.K, gate = (r + j) % p_.K;
          for (int m = 0; m < height; ++m) put(((row + m) * p_.K + gate) * p_.O + unit, sums[m * W + j]);
        }
      }
    }
  }

  FASTRNN_INLINE void put(int64_t at, T value) const {
    if (p_.dtype == Dtype::kBFloat16) {
      static_cast<uint16_t*>(p_.u)[at] = float_to_bfloat16(static_cast<float>(value));
    } else if (p_.dtype == Dtype::kHalf) {
      static_cast<uint16_t*>(p_.u)[at] = float_to_half(static_cast<float>(value));
    } else {
      static_cast<T*>(p_.u)[at] = value;
    }
  }

  const GateProductParams& p_;
  const int workers_;
  T* x_;
  size_t bytes_;
};

template <class F>
void with_gate_product(const GateProductParams& params, int workers, char* workspace, F&& f) {
  if (params.dtype == Dtype::kDouble) {
    f(GateProduct<double>(params, workers, workspace));
  } else {
    f(GateProduct<float>(params, workers, workspace));
  }
}

inline size_t gate_product_workspace(const GateProductParams& params, int workers) {
  size_t bytes = 0;
  with_gate_product(params, workers, nullptr, [&](const auto& product) { bytes = product.workspace_bytes(); });
  return bytes;
}

inline void gate_product(const GateProductParams& params, int workers, char* workspace, const Parallel& parallel) {
  with_gate_product(params, workers, workspace, [&]<class Product>(Product product) {
    product.block_input();
    parallel.run(workers, Product::body, &product);
  });
}

}  // namespace
}  // namespace fastrnn
