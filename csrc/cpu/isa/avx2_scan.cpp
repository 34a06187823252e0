// The scan on AVX2 with FMA and F16C.
#include "cpu/scan/kernels.h"

#if defined(__x86_64__)
#if !defined(__AVX2__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_AVX2
#include "cpu/scan/kernels.inl"

namespace fastrnn {
constinit const ScanKernels kAvx2Scan = make_scan_kernels();
}  // namespace fastrnn
#endif
