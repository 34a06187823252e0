// The scan on AVX-512 with its bfloat16 conversions: the other half of such a layer's time goes into rounding.
#include "cpu/scan/kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#define FASTRNN_AVX512_BF16
#include "cpu/scan/kernels.inl"

namespace fastrnn {
const ScanKernels kAvx512Bf16Scan = make_scan_kernels();
}  // namespace fastrnn
#endif
