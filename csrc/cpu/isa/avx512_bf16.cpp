// AVX-512 with AVX512-BF16: both passes of bfloat16 layers by its dot instruction, with its conversions; of all else
// AVX-512's own kernels.
#include "cpu/isa/list.h"
#include "cpu/isa/table.h"

#if defined(__x86_64__)
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#define FASTRNN_AVX512_BF16
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
static bool runs_here() { return kAvx512Kernels.runs_here() && __builtin_cpu_supports("avx512bf16"); }
const KernelTable kAvx512Bf16Kernels =
    make_bf16_table<kAvx512Kernels, Bf16Operand>(isa_name(Isa::kAvx512Bf16), runs_here, &kAvx512Bf16Scan);
}  // namespace fastrnn
#endif
