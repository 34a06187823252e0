// NEON by its own instructions: 4 floats a register, 32 registers; with BFMMLA where there is one.
#include "cpu/isa/list.h"
#include "cpu/isa/table.h"

#if defined(__aarch64__)
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_NEON
#if defined(__GNUC__) && !defined(__clang__)
// The tiles use every register there is, in the order in which they are written.
#pragma GCC optimize("no-schedule-insns")
#endif
#include "cpu/isa/arm.h"
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
static bool runs_here() { return true; }
constinit const KernelTable kNeonKernels = make_table(isa_name(Isa::kNeon), runs_here, &kNeonScan);

constinit const KernelTable kNeonBf16Kernels =
    make_bf16_table<kNeonKernels, Bf16Operand>(isa_name(Isa::kNeonBf16), has_bf16_dot, &kNeonScan);
}  // namespace fastrnn
#endif
