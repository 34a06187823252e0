// The scan on AVX-512 (F, BW, VL, DQ).
#include "cpu/scan/kernels.h"

#if defined(__x86_64__)
#if !defined(__AVX512F__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#include "cpu/scan/kernels.inl"

namespace fastrnn {
constinit const ScanKernels kAvx512Scan = make_scan_kernels();
}  // namespace fastrnn
#endif
