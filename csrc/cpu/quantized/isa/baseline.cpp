// Quantized layers on what every processor of the target has.
#include "cpu/quantized/kernels.h"

#define FASTRNN_VECTOR_BYTES 16
#include "cpu/quantized/kernels.inl"

namespace fastrnn {
constinit const QuantizedKernels kBaselineQuantized = make_quantized_kernels();
}  // namespace fastrnn
