// The scan on what every processor of the target has.
#include "cpu/scan/kernels.h"

#define FASTRNN_VECTOR_BYTES 16
#include "cpu/scan/kernels.inl"

namespace fastrnn {
constinit const ScanKernels kBaselineScan = make_scan_kernels();
}  // namespace fastrnn
