// Streams on AVX2 with FMA and F16C.
#include "cpu/isa/list.h"
#include "cpu/stream/kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_AVX2
#include "cpu/stream/kernels.inl"

namespace fastrnn {
// All that the pragma names: a virtual machine may hide any of them.
static bool runs_here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
const StreamKernels kAvx2Stream = make_stream_kernels(isa_name(Isa::kAvx2), runs_here);
}  // namespace fastrnn
#endif
