// Products of so few rows that packing the weight would cost more than it saves: dot products with the
// rows of the weight where they lie, each of which is read once.
#pragma once
#include "cpu/product/operand.inl"
#include "cpu/team.h"
#include "params/scan.h"

namespace fastrnn {
namespace {

// Four rows of a natural weight times MR rows of a blocked operand, by dot products along K:
// sums[j][m] = weight[first + j] . a[m], j < count. Lanes add up in blocks, as in product.inl.
template <class T, class Operand, int MR>
FASTRNN_INLINE void dot_rows(typename Simd<T>::V (&sums)[4][MR], const void* weight, int64_t first, int count,
                             int64_t K, Dtype dtype, const typename Operand::E* a, int64_t block_stride) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W;
  constexpr int kChains = MR == 1 ? 2 : 1;  // four alone would wait for their own multiply-adds
  int64_t k = 0;
#pragma GCC unroll 1
  do {
    const bool first_block = k == 0;
    const int64_t end = min_of(K, k + kSumBlock * W);
    V block[kChains][4][MR] = {};
    if (count == 4 && size_of(dtype) == sizeof(T)) {  // whole vectors of the compute type, streamed
      const T* w = static_cast<const T*>(weight) + first * K + k;
      for (; k + kChains * W <= end; k += kChains * W) {
#pragma GCC unroll 2
        for (int s = 0; s < kChains; ++s, a += block_stride, w += W) {
          V row[MR];
#pragma GCC unroll 4
          for (int m = 0; m < MR; ++m) row[m] = Operand::load(a + m * W);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            const V weights = S::load(w + j * K);
            __builtin_prefetch(w + (j + 4) * K);
#pragma GCC unroll 4
            for (int m = 0; m < MR; ++m) block[s][j][m] += weights * row[m];
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
        const V sum = kChains == 2 ? block[0][j][m] + block[kChains - 1][j][m] : block[0][j][m];
        sums[j][m] = first_block ? sum : sums[j][m] + sum;
      }
    }
    if (k == end) continue;  // to the condition
    V rest[4][MR] = {};      // of K, of fewer rows, of half types
    for (; k < end; k += W, a += block_stride) {
      const int n = static_cast<int>(min_of<int64_t>(W, end - k));
      for (int j = 0; j < count; ++j) {
        const V weights = load_as<T>(weight, (first + j) * K + k, n, dtype);
        for (int m = 0; m < MR; ++m) rest[j][m] += weights * Operand::load(a + m * W);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) sums[j][m] += rest[j][m];
    }
  } while (k < K);
}

// The product of a few rows of an SRU layer's input, see GateProductParams.
template <class T>
class GateProduct {
  using S = Simd<T>;
  using V = typename S::V;
  using Operand = NaturalOperand<T>;
  static constexpr int W = S::W;
  static constexpr int kRows = 4;  // at once

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
    for (int64_t row = 0; row < p_.B; row += kRows) {
      switch (min_of<int64_t>(kRows, p_.B - row)) {
        case 1:
          rows<1>(row, first, last);
          break;
        case 2:
          rows<2>(row, first, last);
          break;
        case 3:
          rows<3>(row, first, last);
          break;
        default:
          rows<4>(row, first, last);
      }
    }
  }

  template <int MR>
  void rows(int64_t row, int64_t first, int64_t last) const {
    for (int64_t r = first; r < last; r += 4) {
      const int count = static_cast<int>(min_of<int64_t>(4, last - r));
      V sums[4][MR];
      dot_rows<T, Operand, MR>(sums, p_.weight, r, count, p_.I, p_.dtype, x_ + row * W, p_.B * W);
      for (int j = 0; j < count; ++j) {
        const int64_t unit = (r + j) / p_.K, gate = (r + j) % p_.K;
        for (int m = 0; m < MR; ++m) put(((row + m) * p_.K + gate) * p_.O + unit, sum_lanes<T>(sums[j][m]));
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

size_t gate_product_workspace(const GateProductParams& params, int workers) {
  size_t bytes = 0;
  with_gate_product(params, workers, nullptr, [&](const auto& product) { bytes = product.workspace_bytes(); });
  return bytes;
}

void gate_product(const GateProductParams& params, int workers, char* workspace, const Parallel& parallel) {
  with_gate_product(params, workers, workspace, [&]<class Product>(Product product) {
    product.block_input();
    parallel.run(workers, Product::body, &product);
  });
}

}  // namespace
}  // namespace fastrnn
