// AVX-512 with AVX512-BF16: both passes of bfloat16 layers by its dot instruction, with its conversions; of all else
// AVX-512's own kernels.
#include "cpu/isa/list.h"
#include "cpu/isa/processor.h"
#include "cpu/isa/table.h"

#if defined(__x86_64__)
#if !defined(__AVX512BF16__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#define FASTRNN_AVX512_BF16
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
constinit const KernelTable kAvx512Bf16Kernels =
    make_bf16_table<kAvx512Kernels, Bf16Operand>(isa_name(Isa::kAvx512Bf16), has_avx512_bf16, &kAvx512Bf16Scan);
}  // namespace fastrnn
#endif
