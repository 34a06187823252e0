// Every instruction that the persistent kernels write as assembly. The emulator has a twin of this file.
#pragma once
#include "cuda/device/types.cuh"

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

// A load of several elements at once, whose address is a multiple of its size: the emulator's says so if not.
template <class Vector>
__device__ __forceinline__ Vector load_vector(const Vector* p) {
  return *p;
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
__device__ __forceinline__ void add_release(uint64_t* flag, uint64_t n) {
  asm volatile("red.release.gpu.global.add.u64 [%0], %1;" ::"l"(flag), "l"(n) : "memory");
}
__device__ __forceinline__ uint64_t load_acquire(const uint64_t* flag) {
  uint64_t v;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(flag) : "memory");
  return v;
}
// Sets bits of it, and orders nothing else.
__device__ __forceinline__ void or_relaxed(uint64_t* flag, uint64_t bits) {
  asm volatile("red.relaxed.gpu.global.or.b64 [%0], %1;" ::"l"(flag), "l"(bits) : "memory");
}
// Four words of what others wrote before the count that was waited for, on their way into shared memory: past the L1
// cache (cg), and behind the barrier that passes the wait on. Groups and the wait for them are async_copy.cuh's. Not
// one cp.async.bulk for all: that reads by another proxy than the one by which the peers wrote, so that they and the
// reader would need a fence between, and is not there before compute capability 9.0.
__device__ __forceinline__ void copy_exchanged(uint32_t* shared, const uint32_t* p) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(p)
      : "memory");
}

// The GPU's clock, in ticks of 2^20 ns (a millisecond and a bit), modulo 2^32. Reading it takes as long as a poll.
__device__ __forceinline__ uint32_t ticks_now() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return static_cast<uint32_t>(ns >> 20);
}
constexpr int kPollsALook = 128;  // that a wait polls between two looks at the clock
__device__ __forceinline__ void take_a_nap() { __nanosleep(1000); }

// ---- thread block clusters, from compute capability 9.0 on

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasClusters = false;  // what follows is then in no kernel
#else
constexpr bool kHasClusters = true;
#endif

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// The same place in the shared memory of another CTA of the cluster.
__device__ __forceinline__ uint32_t peer_address(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// Both halves: what any thread of the cluster did before is there for every thread after it. All threads of all CTAs
// that have not exited.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

// An mbarrier (8 bytes of this CTA's shared memory) whose phases end when one thread has said how many bytes to
// expect and they have arrived. The fence shows a new barrier to the cluster, before the cluster's barrier.
__device__ __forceinline__ void barrier_init(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Whether the phase of this parity is over, which is 0 for the first and then alternates: what was pushed in it then
// is there. Waits for it as long as the hardware sees fit. The thread must not fall two phases behind.
__device__ __forceinline__ bool try_phase(uint32_t barrier, int parity) {
  uint32_t over;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}
// A word of a CTA's shared memory that becomes 1 once, by whoever in the cluster comes first, and who looks at it. It
// orders nothing else.
__device__ __forceinline__ void raise_flag(uint32_t address_in_cluster) {
  asm volatile("st.relaxed.cluster.shared::cluster.u32 [%0], 1;" ::"r"(address_in_cluster) : "memory");
}
__device__ __forceinline__ bool flag_is_raised(uint32_t address) {
  uint32_t v;
  asm volatile("ld.relaxed.cluster.shared::cta.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v != 0;
}
// Stores the words in a CTA of the cluster, and counts their bytes at a barrier there when they have arrived.
__device__ __forceinline__ void push(uint32_t address, uint2 v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(address),
      "r"(v.x), "r"(v.y), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void push(uint32_t address, uint4 v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(address),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
      : "memory");
}

}  // namespace fastrnn::cuda
