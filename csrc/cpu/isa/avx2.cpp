// AVX2 with FMA and F16C: 8 floats a register, 16 registers.
#include "cpu/isa/list.h"
#include "cpu/isa/table.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_AVX2  // the pragma does not define __AVX2__ in time: g++ reads all tokens first
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
// All that the pragma names: a virtual machine may hide any of them.
static bool runs_here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
const KernelTable kAvx2Kernels = make_table(isa_name(Isa::kAvx2), runs_here, &kAvx2Scan, &kAvx2Quantized);
}  // namespace fastrnn
#endif
