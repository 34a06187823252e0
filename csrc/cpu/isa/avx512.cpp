// AVX-512 (F, BW, VL, DQ): 16 floats a register, 32 registers; with AVX512-BF16 where there is one.
#include "cpu/isa/list.h"
#include "cpu/isa/table.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512  // the pragma does not define __AVX512F__ in time: g++ reads all tokens first
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
// All that the pragma names: a virtual machine may hide any of them.
static bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}
const KernelTable kAvx512Kernels = make_table(isa_name(Isa::kAvx512), runs_here, &kAvx512Scan, &kAvx512Quantized);

// The same, but for the forward pass of bfloat16 layers and the scan of bfloat16.
static bool dot_runs_here() { return runs_here() && __builtin_cpu_supports("avx512bf16"); }
const KernelTable kAvx512Bf16Kernels = make_dot_table(isa_name(Isa::kAvx512Bf16), dot_runs_here, &kAvx512Bf16Scan, &kAvx512Quantized);
}  // namespace fastrnn
#endif
