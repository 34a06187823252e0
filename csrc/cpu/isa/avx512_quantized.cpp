// Quantized layers on AVX-512 (F, BW, VL, DQ); with AVX512-VNNI where there is one.
#include "cpu/quantized/kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#include "cpu/quantized/kernels.inl"

namespace fastrnn {
const QuantizedKernels kAvx512Quantized = make_quantized_kernels();
}  // namespace fastrnn
#endif
