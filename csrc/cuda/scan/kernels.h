// The SRU's scan on the GPU: both directions of a whole sequence in one launch, any length.
//
// All pointers are device memory. Each launch function returns a cudaError_t as int, does not synchronise and
// allocates nothing.
//
// Cost, with e bytes an element and a a state value: forward moves (K+2)e for each column and step, e more
// with x, a more where c is saved; backward reads (K+2)e + a and writes (K+1)e. Nothing is read twice, and
// the latency of one step (two sigmoids) is all that a column waits for: T steps take at least T times that.
#pragma once
#include <cstdint>

#include "params/scan.h"

namespace fastrnn::cuda {

// Where the rows of a packed sequence lie, on the device; null for a padded one. The shape's own tables stay
// on the host and are not read by kernels.
struct ScanTables {
  const int64_t* row_offsets = nullptr;  // (L+1)
  const int64_t* lengths = nullptr;      // (B) steps of each row
};

int scan_forward(const ScanForwardParams& params, const ScanTables& tables, void* stream);

// partials: (B,4,O) in the compute type, where the gradients of w_f, w_r, b_f, b_r are wanted, else null.
int scan_backward(const ScanBackwardParams& params, const ScanTables& tables, void* partials, void* stream);

// flags (D,L,B) of ScanInputs, from pads (or null) and resets, (L,B).
int scan_flags(const ScanShape& shape, const uint8_t* pads, const uint8_t* resets, uint8_t* flags, void* stream);

// grad_weight_c and grad_bias, (2,O) each in the layer's type, from backward's partials: rows in a fixed order.
int scan_sums(const ScanShape& shape, const void* partials, void* grad_weight_c, void* grad_bias, void* stream);

}  // namespace fastrnn::cuda
