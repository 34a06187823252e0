// What operators on every device do with tensors before kernels see them: make their rows contiguous, say where those
// lie.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "params/scan.h"

namespace fastrnn {

using torch::stable::Tensor;

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A tensor whose rows of features are contiguous, whatever its other strides are.
inline Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

// Of a (T,B,F) tensor or packed (N,F) data with contiguous rows.
inline TensorRows rows_of(const Tensor& tensor) {
  const bool padded = tensor.dim() == 3;
  return {tensor.data_ptr(), padded ? tensor.stride(0) : 0, tensor.stride(padded)};
}

// The same of groups of features, (L,B,K,O) or (N,K,O).
inline GateRows gate_rows_of(const Tensor& tensor) {
  const bool padded = tensor.dim() == 4;
  return {tensor.data_ptr(), padded ? tensor.stride(0) : 0, tensor.stride(padded), tensor.stride(padded + 1)};
}

}  // namespace fastrnn
