// Streams on what every processor of the target has.
#include "cpu/isa/list.h"
#include "cpu/stream/kernels.h"

#define FASTRNN_VECTOR_BYTES 16
#include "cpu/stream/kernels.inl"

namespace fastrnn {
static bool runs_here() { return true; }
constinit const StreamKernels kBaselineStream = make_stream_kernels(isa_name(Isa::kBaseline), runs_here);
}  // namespace fastrnn
