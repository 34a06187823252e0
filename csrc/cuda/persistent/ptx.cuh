// Every instruction that the persistent kernels write as assembly, each with its twin for the emulator.
#pragma once
#include "../device.cuh"

#ifdef CUDA_ON_CPU
#include "emu_ptx.h"
#else

namespace fastrnn::cuda {

// Dynamic shared memory, as the emulator's macro of this name.
#define SMEM_DYN(T, name) extern __shared__ __align__(16) T name[]

// d (16x8) += a (16xK) b (Kx8), a row-major and b column-major in PTX's fragment layouts; all lanes.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// To the nearest TF32 number, ties away from zero; the low 13 bits come out zero.
__device__ __forceinline__ uint32_t to_tf32(float v) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v));
  return r & 0xffffe000u;  // PTX leaves them unspecified
}

// Relative error to 2^-11.
__device__ __forceinline__ float tanh_approx(float v) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
// Relative error to 2^-22 and 2^-23; subnormal results and arguments are zero.
__device__ __forceinline__ float exp2_approx(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
__device__ __forceinline__ float reciprocal_approx(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// Hides from the compiler where the value comes from: what is computed from it cannot move out of a loop.
__device__ __forceinline__ void forget(uint32_t& value) { asm volatile("" : "+r"(value)); }
__device__ __forceinline__ void forget(int& value) { asm volatile("" : "+r"(value)); }

// A flag that counts arrivals: what a warp wrote before (its lanes joined by __syncwarp) is visible to whoever
// reads the count with the other function.
__device__ __forceinline__ void add_release(uint32_t* flag, uint32_t n) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(flag), "r"(n) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* flag) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}
// What others wrote before the count that was waited for: past the L1 cache, and behind the barrier that passes the
// wait on.
__device__ __forceinline__ uint2 load_exchanged(const uint2* p) {
  uint2 v;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint4 load_exchanged(const uint4* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
// Waits until the count has reached `target` (modulo 2^32, less than 2^31 away). False after `limit` polls.
__device__ __forceinline__ bool wait_for_count(const uint32_t* flag, uint32_t target, uint32_t limit) {
  for (uint32_t polls = 0; polls < limit; ++polls) {
    if (static_cast<int32_t>(load_acquire(flag) - target) >= 0) return true;
  }
  return false;
}

}  // namespace fastrnn::cuda
#endif
