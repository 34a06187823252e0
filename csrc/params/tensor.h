// What the parameter structs say of a tensor: its type, and where its rows lie.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cells/host_device.h"

namespace fastrnn {

enum class Dtype : int { kFloat = 0, kDouble = 1, kBFloat16 = 2, kHalf = 3 };

constexpr FASTRNN_INLINE size_t size_of(Dtype dtype) {
  return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2;
}

// Rows of features: a (T,B,F) tensor of any step and row stride, or packed (N,F) data. Features are
// contiguous. Strides count elements. data may be null where a gradient is absent.
struct TensorRows {
  void* data = nullptr;
  int64_t step_stride = 0;
  int64_t row_stride = 0;
};

}  // namespace fastrnn
