// AVX-512 (F, BW, VL, DQ): 16 floats a register, 32 registers.
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
}  // namespace fastrnn
#endif
