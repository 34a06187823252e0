// Quantized layers on AVX2 with FMA and F16C; with AVX-VNNI where there is one.
#include "cpu/quantized/kernels.h"

#if defined(__x86_64__)
#if !defined(__AVX2__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_AVX2
#include "cpu/quantized/kernels.inl"

namespace fastrnn {
constinit const QuantizedKernels kAvx2Quantized = make_quantized_kernels();
}  // namespace fastrnn
#endif
