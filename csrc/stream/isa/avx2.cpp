// Streams on AVX2 with FMA and F16C.
#include "cpu/isa/list.h"
#include "cpu/isa/processor.h"
#include "cpu/stream/kernels.h"

#if defined(__x86_64__)
#if !defined(__AVX2__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_AVX2
#include "cpu/stream/kernels.inl"

namespace fastrnn {
constinit const StreamKernels kAvx2Stream = make_stream_kernels(isa_name(Isa::kAvx2), has_avx2);
}  // namespace fastrnn
#endif
