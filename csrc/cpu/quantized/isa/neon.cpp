// Quantized layers on NEON by its own instructions; with SDOT where there is one.
#include "cpu/quantized/kernels.h"

#if defined(__aarch64__)
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_NEON
#include "cpu/quantized/kernels.inl"

namespace fastrnn {
constinit const QuantizedKernels kNeonQuantized = make_quantized_kernels();
}  // namespace fastrnn
#endif
