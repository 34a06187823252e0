// What the operators on the CPU have in common: making tensors, handing their memory to kernels, threads.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include "cpu/ops/scratch.h"
#include "cpu/team.h"
#include "params/rnn.h"

namespace fastrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Tensors of so many bytes and more are mapped anew by glibc's malloc for every call, whose first touch of a page
// costs more than the kernel's use of it: the SRU's backward pass over 67 MB of gradients took 50 ms, 8 of them its
// own. In huge pages it is a fraction of that.
constexpr size_t kAlwaysMapped = 32 << 20;

inline Tensor empty(const int64_t* sizes, size_t dim, ScalarType dtype) {
  constexpr size_t kMostDims = 8;
  int64_t strides[kMostDims];
  if (dim > kMostDims) throw std::length_error("empty: expected at most 8 dimensions");
  int64_t stride = 1, numel = 1;
  for (size_t i = dim; i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
    numel *= sizes[i];
  }
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dim), sizes, strides, code,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  constexpr size_t kLargestElement = 16;  // a small tensor need not be asked for its own
  if (static_cast<size_t>(numel) * kLargestElement >= kAlwaysMapped) {
    const size_t bytes = static_cast<size_t>(numel) * tensor.element_size();
    if (bytes >= kAlwaysMapped) wish_for_huge_pages(tensor.data_ptr(), bytes);
  }
  return tensor;
}
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(sizes.begin(), sizes.size(), dtype);
}
inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  return empty(sizes.data(), sizes.size(), dtype);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A tensor whose rows of features are contiguous, whatever its other strides are.
inline Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

inline Rows rows_of(const Tensor& tensor) {
  Rows rows;
  rows.data = tensor.data_ptr();
  rows.step_stride = tensor.dim() == 3 ? tensor.stride(0) : 0;
  rows.row_stride = tensor.dim() == 3 ? tensor.stride(1) : tensor.stride(0);
  return rows;
}

inline ScalarType compute_type(Dtype dtype) {
  return dtype == Dtype::kDouble ? ScalarType::Double : ScalarType::Float;
}

inline const Parallel kTorchThreads{[](int64_t workers, void (*body)(int64_t, int64_t, void*), void* context) {
  if (workers == 1) {
    body(0, 1, context);
  } else {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, workers, 1, body, context));
  }
}};

}  // namespace fastrnn
