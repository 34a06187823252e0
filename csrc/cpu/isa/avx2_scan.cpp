// The scan on AVX2 with FMA and F16C.
#include "cpu/scan/kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_AVX2
#include "cpu/scan/kernels.inl"

namespace fastrnn {
const ScanKernels kAvx2Scan = make_scan_kernels();
}  // namespace fastrnn
#endif
