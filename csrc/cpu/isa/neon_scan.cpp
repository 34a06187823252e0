// The scan on NEON by its own instructions.
#include "cpu/scan/kernels.h"

#if defined(__aarch64__)
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_NEON
#include "cpu/scan/kernels.inl"

namespace fastrnn {
constinit const ScanKernels kNeonScan = make_scan_kernels();
}  // namespace fastrnn
#endif
