// Which instruction set a model runs on: the best that this machine has, or the one that was asked for.
#pragma once
#include <vector>

#include "cpu/stream/kernels.h"

namespace fastrnn::stream {

std::vector<const StreamKernels*> runnable_kernels();  // best first

// The best, or where FASTRNN_CPU_ISA is set the one that it names, as for the Python package: for tests. Throws Error
// for a name that cannot run here.
const StreamKernels& choose_kernels();

}  // namespace fastrnn::stream
