// What a kernel that gave up waiting tells the host: one record a device, in host memory that the device writes to,
// so that the host can look at every call without waiting for the device.
//
// The first failure stays until clear_status(): later ones are mostly its consequences. Nothing of a record is seen
// before all of it is there. No CUDA header here.
#pragma once
#include <cstdint>

#include "cells/list.h"
#include "params/mode.h"
#include "plan/device.h"

namespace fastrnn::cuda {

enum StatusCode : uint32_t {
  kStatusClear = 0,         // no kernel has failed
  kStatusBeingWritten = 1,  // never what read_status() returns
  kStatusWaitTimedOut = 2,  // a wait for other CTAs took longer than it may: the results are NaN from that step on
};

struct Status {
  uint32_t code = kStatusClear;
  Tier tier = Tier::kAuto;
  CellKind cell = CellKind::kLstm;
  int64_t T = 0, B = 0, H = 0;
  // The step that never came, counted from the first one that the pass takes: forward 0 to T-1, where 0 has waited
  // for h0; backward 1 to T, where T has waited for the gradient of h0.
  int64_t step = 0;
  // And what else names the kernel and its launch.
  Pass pass = Pass::kForward;
  Precision precision = Precision::kFloat32;
  int D = 0;
  int ctas_per_replica = 0;  // cluster tier: CTAs of a cluster
};

// What the device has reported since the last clear_status(): code kStatusClear where nothing. Reads memory of the
// host: no CUDA call, no synchronisation, any thread. A launch that is still running may report later; who wants to
// know that everything went well synchronises first.
Status read_status(int device);
void clear_status(int device);

// The same record as kernels of the current device write it, made at the first call, a stream's capture included.
// Null where the device cannot have such memory: kernels then have NaN alone to tell.
Status* status_on_device();

}  // namespace fastrnn::cuda
