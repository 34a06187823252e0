// What this processor has, for the tables of kernels. In a file of its own: what is compiled for an instruction set
// may not even ask for it where it is not there.
#include "cpu/isa/processor.h"

namespace fastrnn {

#if defined(__x86_64__)
// All that flags.txt names: a virtual machine may hide any of them.
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

}  // namespace fastrnn
