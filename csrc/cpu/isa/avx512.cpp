// AVX-512 (F, BW, VL, DQ): 16 floats a register, 32 registers; with AVX512-BF16 where there is one.
#include "cpu/isa/list.h"
#include "cpu/isa/processor.h"
#include "cpu/isa/table.h"

#if defined(__x86_64__)
#if !defined(__AVX512F__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
constinit const KernelTable kAvx512Kernels = make_table(isa_name(Isa::kAvx512), has_avx512, &kAvx512Scan);

// The same, but for the forward pass of bfloat16 layers and the scan of bfloat16.
constinit const KernelTable kAvx512Bf16Kernels =
    make_dot_table(isa_name(Isa::kAvx512Bf16), has_avx512_bf16, &kAvx512Bf16Scan);
}  // namespace fastrnn
#endif
