// The scan on what every processor of the target has.
#include "scan.h"

#define FASTRNN_VECTOR_BYTES 16
#include "scan.inl"

namespace fastrnn {
const ScanKernels kBaselineScan = make_scan_kernels();
}  // namespace fastrnn
