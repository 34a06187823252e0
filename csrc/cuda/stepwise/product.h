// The product that every time step of the stepwise tier begins or ends with.
#pragma once
#include <vector>

#include "cuda/stepwise/kernels.h"
#include "cuda/torch/layer.h"

namespace fastrnn::cuda {

// Where a time loop's launches go: to the layer's stream, with torch's products; or, with a handle of our own, to the
// stream that it was told, whatever torch's current one is.
struct Lane {
  void* stream = nullptr;
  const OwnBlas* blas = nullptr;

  void multiply(const Tensor& out, const Tensor& a, const Tensor& b, bool tf32) const {
    if (!blas) return cuda::multiply(out, a, b, tf32);
    const auto product = blas_product(out, a, b, /*add=*/false);
    check(product.has_value(), "a product of a time step: expected sizes that cuBLAS takes, got ", out.size(1),
          " by ", out.size(2));
    (*blas)(*product);
  }
};

// out[d] = a[d] b[d] over the rows of a step, for every direction d: one batched product where the
// directions have equally many rows, one each where a packed sequence gives them different numbers.
//
// a (D,Na,K), rows of any stride; b (D,K,M), any strides; out (D,B,M) contiguous, its first rows are
// written. The three views are kept for as long as the rows stay the same: a padded sequence whose
// operand does not move makes them once, not once a step.
class StepProduct {
 public:
  StepProduct(const Layer& layer, Tensor a, Tensor b, Tensor out)
      : tf32_(layer.tf32), a_(std::move(a)), b_(std::move(b)), out_(std::move(out)) {}

  void operator()(const StepRows& rows, const Lane& lane) {
    if (products_.empty() || !same(rows)) set(rows);
    for (const Product& p : products_) lane.multiply(p.out, p.a, p.b, tf32_);
  }

 private:
  struct Product {
    Tensor out, a, b;
  };
  bool same(const StepRows& rows) const {
    return rows.first[0] == rows_.first[0] && rows.first[1] == rows_.first[1] && rows.count[0] == rows_.count[0] &&
           rows.count[1] == rows_.count[1];
  }
  void set(const StepRows& rows) {
    rows_ = rows;
    products_.clear();
    const int64_t D = a_.size(0);
    if (D == 2 && rows.count[0] == rows.count[1]) {
      // The directions stand at different steps: the distance between their operands moves with them. It
      // stays positive, as the second direction's rows all lie behind the first's.
      add(rows, 0, 2, a_.stride(0) + (rows.first[1] - rows.first[0]) * a_.stride(1));
    } else {
      for (int d = 0; d < D; ++d) add(rows, d, 1, a_.stride(0));
    }
  }
  void add(const StepRows& rows, int d, int64_t directions, int64_t a_distance) {
    const int64_t n = rows.count[d], K = a_.size(2), M = out_.size(2);
    products_.push_back(
        {view(out_, {directions, n, M}, {out_.stride(0), M, 1}, d * out_.stride(0)),
         view(a_, {directions, n, K}, {a_distance, a_.stride(1), 1}, d * a_.stride(0) + rows.first[d] * a_.stride(1)),
         view(b_, {directions, K, M}, {b_.stride(0), b_.stride(1), b_.stride(2)}, d * b_.stride(0))});
  }

  bool tf32_;
  Tensor a_, b_, out_;
  StepRows rows_;
  std::vector<Product> products_;
};

// The matrices of a stack, each transposed.
inline Tensor transposed_each(const Tensor& stack) {
  return view(stack, {stack.size(0), stack.size(2), stack.size(1)},
              {stack.stride(0), stack.stride(2), stack.stride(1)});
}

}  // namespace fastrnn::cuda
