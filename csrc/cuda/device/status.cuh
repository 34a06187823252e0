// How a kernel writes the record of status.h.
#pragma once
#include "cuda/device/runtime.cuh"
#include "cuda/device/status.h"

namespace fastrnn::cuda {

// By one thread, which has seen `what` happen at `step`. The first one of the device writes, the others find the
// record taken; the code comes last, behind a fence that the host sees too.
__device__ __forceinline__ void report(Status* status, const Status& what, int64_t step) {
  if (!status || atomicCAS_system(&status->code, kStatusClear, kStatusBeingWritten) != kStatusClear) return;
  Status& out = *status;
  out.tier = what.tier;
  out.cell = what.cell;
  out.T = what.T;
  out.B = what.B;
  out.H = what.H;
  out.step = step;
  out.pass = what.pass;
  out.precision = what.precision;
  out.D = what.D;
  out.ctas_per_replica = what.ctas_per_replica;
  __threadfence_system();
  *static_cast<volatile uint32_t*>(&out.code) = what.code;
}

}  // namespace fastrnn::cuda
