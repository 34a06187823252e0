// Copies from global to shared memory that a thread starts now and waits for later (cp.async). The emulator has a
// twin of this file.
#pragma once
#include <cstdint>

#include "cuda/device/runtime.cuh"

namespace fastrnn::cuda {

// kBytes 4, 8 or 16, both addresses multiples of it. The copy belongs to the group of the next commit_copies.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global), "n"(kBytes)
      : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kGroups of this thread's latest groups are still on their way.
template <int kGroups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}
#define FASTRNN_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define FASTRNN_SHARED(T, name, dims) __shared__ T name dims

}  // namespace fastrnn::cuda
