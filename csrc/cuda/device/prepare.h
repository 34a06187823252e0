// What a layer's tensors go through before and after its time loop, whatever the tier. Pointers, letters and results
// as in stepwise/kernels.h: device memory, T the layer's type and A the compute type, a cudaError_t as int.
#pragma once
#include "cuda/device/rows.h"

namespace fastrnn::cuda {

// out (Gr*H) A: b_ih + b_hh (each (G*H) T), except that a GRU keeps the two biases of n apart: b_in in
// place n, b_hn behind.
int combine_bias(const StepShape& shape, const void* b_ih, const void* b_hh, void* out, void* stream);

// Zeroes the rows of a padded (D,T*B,width) tensor, elements of `element` bytes, beyond their length. T: the
// tensor's, which may be more than the table's.
int clear_padding(const RowTable& table, int64_t T, int D, int64_t width, size_t element, void* data, void* stream);

}  // namespace fastrnn::cuda
