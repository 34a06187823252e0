// Streams on AVX-512 (F, BW, VL, DQ).
#include "cpu/isa/list.h"
#include "cpu/stream/kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#include "cpu/stream/kernels.inl"

namespace fastrnn {
// All that the pragma names: a virtual machine may hide any of them.
static bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}
const StreamKernels kAvx512Stream = make_stream_kernels(isa_name(Isa::kAvx512), runs_here);
}  // namespace fastrnn
#endif
