// AMX (tiles, bfloat16) beside AVX-512 with AVX512-BF16: both passes of bfloat16 layers. Only for who asks for it by
// name: see cpu/product/amx.inl.
#include "cpu/isa/list.h"
#include "cpu/isa/table.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#pragma GCC target("amx-bf16,avx512bf16,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#define FASTRNN_AVX512_BF16
#include "cpu/product/amx.inl"
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
// A processor that has the tiles, and a system that lets this process use them: Linux asks to be asked, once.
static bool runs_here() {
  if (!kAvx512Bf16Kernels.runs_here() || !__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16")) {
    return false;
  }
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
const KernelTable kAmxKernels =
    make_bf16_table<kAvx512Bf16Kernels, AmxOperand>(isa_name(Isa::kAmx), runs_here, &kAvx512Bf16Scan);
}  // namespace fastrnn
#endif
