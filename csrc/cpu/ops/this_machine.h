// The machine that plans are made for, as the system describes it.
#pragma once
#include "cpu/isa/choose.h"

namespace fastrnn {

// What plan_cpu takes of these kernels, this processor and the threads that a call may use now.
CpuMachine this_machine(const KernelTable& kernels, Dtype dtype);

// Bytes of the last cache.
int64_t last_cache();

}  // namespace fastrnn
