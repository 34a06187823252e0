// The GPU that the emulator's plans are made for, which a test sets.
#pragma once
#include "cuda/persistent/params.h"

namespace fastrnn::cuda {

// The GPU that plans are made for. Nothing by default, which leaves the stepwise tier; the op `device` sets it.
inline CudaDevice& emulated_device() {
  static CudaDevice device;
  return device;
}
inline const CudaDevice& device_properties(int) { return emulated_device(); }

}  // namespace fastrnn::cuda
