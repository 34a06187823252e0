// The few torch operations that the CUDA ops are made of, on torch's stable ABI: allocate, view, copy,
// multiply, add up. Products go through torch so that its reduced-precision settings, its workspaces and
// its cuBLAS handle for each stream hold for them; those of float32 through the same handle, see blas.h.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "cuda/torch/blas.h"
#include "cuda/torch/runtime.h"
#include "ops/tensors.h"

namespace fastrnn::cuda {

// The ops are leaves to autograd: nothing that they call may be recorded, whatever the caller's mode.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

// What is in force while an operator runs: its tensors' device, and no recording.
class Scope {
 public:
  explicit Scope(const Tensor& x) : device_(device_of(x)) {}

 private:
  DeviceGuard device_;
  NoGrad no_grad_;
};

// A view of t's memory, unknown to autograd; strides and offset in elements, the offset from t's first one.
inline Tensor view(const Tensor& t, const Sizes& sizes, const Sizes& strides, int64_t offset = 0) {
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), static_cast<int64_t>(sizes.size()), sizes.data(),
                                                        strides.data(), offset, &out));
  return adopt(out);
}

// Columns [first, first + count) of a matrix, its rows [first, first + count), its transpose.
inline Tensor columns(const Tensor& m, int64_t first, int64_t count) {
  return view(m, {m.size(0), count}, {m.stride(0), m.stride(1)}, first * m.stride(1));
}
inline Tensor rows(const Tensor& m, int64_t first, int64_t count) {
  return view(m, {count, m.size(1)}, {m.stride(0), m.stride(1)}, first * m.stride(0));
}
inline Tensor transposed(const Tensor& m) { return view(m, {m.size(1), m.size(0)}, {m.stride(1), m.stride(0)}); }
// Matrix d of a stack of them.
inline Tensor slice(const Tensor& stack, int64_t d) {
  return view(stack, {stack.size(1), stack.size(2)}, {stack.stride(1), stack.stride(2)}, d * stack.stride(0));
}

// A float32 product in the precision asked for; false where it has to be torch's.
inline bool float_product(const Tensor& out, const Tensor& a, const Tensor& b, bool add, bool tf32) {
  if (a.scalar_type() != ScalarType::Float || !blas_available()) return false;
  if (out.numel() == 0) return true;
  if (a.numel() == 0) {
    if (!add) zero(out);
    return true;
  }
  if (const auto product = blas_product(out, a, b, add)) {
    run_product(*product, tf32);
    return true;
  }
  // An operand of other strides: weights that were expanded, say.
  const Tensor plain_a = as_contiguous(a), plain_b = as_contiguous(b);
  const auto product = blas_product(out, plain_a, plain_b, add);
  if (product) run_product(*product, tf32);
  return product.has_value();
}

// out = a b, matrices or stacks of them, of any strides; out may be float where a and b are of a half type.
// tf32: whether float32 factors may be rounded to TensorFloat-32.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b, bool tf32) {
  if (float_product(out, a, b, /*add=*/false, tf32)) return;
  if (a.dim() == 2) {
    mm_out(out, a, b);
  } else if (out.scalar_type() == a.scalar_type()) {
    bmm_out(out, a, b);
  } else {
    bmm_out_float(out, a, b);
  }
}
// out += a b, matrices.
inline void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b, bool tf32) {
  if (!float_product(out, a, b, /*add=*/true, tf32)) addmm_out(out, a, b);
}

}  // namespace fastrnn::cuda
