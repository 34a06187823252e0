// The scan on AVX-512 with its bfloat16 conversions: the other half of such a layer's time goes into rounding.
#include "cpu/scan/kernels.h"

#if defined(__x86_64__)
#if !defined(__AVX512BF16__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#define FASTRNN_AVX512_BF16
#include "cpu/scan/kernels.inl"

namespace fastrnn {
constinit const ScanKernels kAvx512Bf16Scan = make_scan_kernels();
}  // namespace fastrnn
#endif
