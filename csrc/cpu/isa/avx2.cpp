// AVX2 with FMA and F16C: 8 floats a register, 16 registers.
#include "cpu/isa/list.h"
#include "cpu/isa/processor.h"
#include "cpu/isa/table.h"

#if defined(__x86_64__)
#if !defined(__AVX2__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_AVX2
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
constinit const KernelTable kAvx2Kernels = make_table(isa_name(Isa::kAvx2), has_avx2, &kAvx2Scan);
}  // namespace fastrnn
#endif
