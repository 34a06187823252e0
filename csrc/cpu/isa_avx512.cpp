// AVX-512 (F, BW, VL, DQ): 16 floats a register, 32 registers.
#include "isa.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512  // the pragma does not define __AVX512F__ in time: g++ reads all tokens first
#include "kernels.inl"

namespace fastrnn {
static bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
}
const KernelTable kAvx512Kernels = make_table("avx512", runs_here);
}  // namespace fastrnn
#endif
