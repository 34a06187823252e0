// What every processor of the target has, as a compiler makes it of the generic source: SSE2 on x86-64, NEON on
// aarch64 (which has kernels of its own, neon.cpp); 4 floats a register.
#include "cpu/isa/list.h"
#include "cpu/isa/table.h"

#define FASTRNN_VECTOR_BYTES 16
#include "cpu/rnn/kernels.inl"

namespace fastrnn {
static bool runs_here() { return true; }
constinit const KernelTable kBaselineKernels = make_table(isa_name(Isa::kBaseline), runs_here, &kBaselineScan);
}  // namespace fastrnn
