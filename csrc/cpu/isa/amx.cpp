// AMX (tiles, bfloat16) beside AVX-512 with AVX512-BF16: both passes of bfloat16 layers. Only for who asks for it by
// name: see cpu/product/amx.inl.
#include "cpu/isa/list.h"
#include "cpu/isa/processor.h"
#include "cpu/isa/table.h"

#if defined(__x86_64__) && defined(__linux__)
#if !defined(__AMX_BF16__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#define FASTRNN_AVX512_BF16
#include "cpu/product/amx.inl"
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
constinit const KernelTable kAmxKernels =
    make_bf16_table<kAvx512Bf16Kernels, AmxOperand>(isa_name(Isa::kAmx), may_use_amx, &kAvx512Bf16Scan);
}  // namespace fastrnn
#endif
