// Quantized layers on AVX-512 (F, BW, VL, DQ); with AVX512-VNNI where there is one.
#include "cpu/quantized/kernels.h"

#if defined(__x86_64__)
#if !defined(__AVX512F__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#include "cpu/quantized/kernels.inl"

namespace fastrnn {
constinit const QuantizedKernels kAvx512Quantized = make_quantized_kernels();
}  // namespace fastrnn
#endif
