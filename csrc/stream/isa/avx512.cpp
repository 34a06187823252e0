// Streams on AVX-512 (F, BW, VL, DQ).
#include "cpu/isa/list.h"
#include "cpu/isa/processor.h"
#include "cpu/stream/kernels.h"

#if defined(__x86_64__)
#if !defined(__AVX512F__)
#error "this file has flags of its own: cpu/isa/flags.txt"
#endif
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_AVX512
#include "cpu/stream/kernels.inl"

namespace fastrnn {
constinit const StreamKernels kAvx512Stream = make_stream_kernels(isa_name(Isa::kAvx512), has_avx512);
}  // namespace fastrnn
#endif
