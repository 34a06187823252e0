// What the planner needs to know of a GPU, asked once for each. The emulator has a twin of this file.
#pragma once
#include <cuda_runtime.h>

#include <array>
#include <mutex>

#include "cuda/torch/tensors.h"
#include "plan/device.h"

namespace fastrnn::cuda {

// Attributes, not cudaGetDeviceProperties, which takes milliseconds.
inline const CudaDevice& device_properties(int device) {
  constexpr int kMost = 64;
  static std::array<CudaDevice, kMost> known;
  static std::array<std::once_flag, kMost> asked;
  STD_TORCH_CHECK(device >= 0 && device < kMost, "device: expected an index below ", kMost, ", got ", device);
  std::call_once(asked[device], [device] {
    const auto ask = [device](cudaDeviceAttr attribute) {
      int value = 0;
      check_cuda(cudaDeviceGetAttribute(&value, attribute, device));
      return value;
    };
    CudaDevice& d = known[device];
    d.compute_capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
    d.sms = ask(cudaDevAttrMultiProcessorCount);
    d.shared_bytes_per_block_optin = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    d.l2_bytes = ask(cudaDevAttrL2CacheSize);
    d.cooperative_launch = ask(cudaDevAttrCooperativeLaunch) != 0;
    d.max_cluster = ask(cudaDevAttrClusterLaunch) ? max_cluster_of(d.compute_capability) : 0;
  });
  return known[device];
}

}  // namespace fastrnn::cuda
