// Copies from global to shared memory that a thread starts now and waits for later (cp.async), and the fast
// forms of exp2 and 1/x: inline assembly, each with its twin for the host.
#pragma once
#include "device.cuh"

namespace fastrnn::cuda {

#ifdef CUDA_ON_CPU
template <int kBytes>
inline void copy_async(void* shared, const void* global, EMU_LOC) {
  emu::cp_async(emu::to_shared(shared), global, kBytes, loc);
}
inline void commit_copies() { emu::cp_commit(); }
template <int kGroups>
inline void wait_copies() {
  emu::cp_wait(kGroups);
}
#define FASTRNN_DYNAMIC_SHARED(name) SMEM_DYN(unsigned char, name)
#define FASTRNN_SHARED(T, name, dims) SMEM_STATIC(T, name, dims)
#else
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
#endif

// 2^x and 1/x to about 2^-22, subnormals as zero. Where the emulator runs them, as wrong as PTX allows.
FASTRNN_HD float fast_exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x) * (1.0f + 0x1p-23f);
#endif
}
FASTRNN_HD float fast_reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x * (1.0f + 0x1p-23f);
#endif
}

}  // namespace fastrnn::cuda
