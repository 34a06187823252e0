// Streams on NEON by its own instructions.
#include "cpu/isa/list.h"
#include "cpu/stream/kernels.h"

#if defined(__aarch64__)
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_NEON
#if defined(__GNUC__) && !defined(__clang__)
// The tiles use every register there is, in the order in which they are written.
#pragma GCC optimize("no-schedule-insns")
#endif
#include "cpu/stream/kernels.inl"

namespace fastrnn {
static bool runs_here() { return true; }
constinit const StreamKernels kNeonStream = make_stream_kernels(isa_name(Isa::kNeon), runs_here);
}  // namespace fastrnn
#endif
