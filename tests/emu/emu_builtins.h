// What kernels and their hosts call: built-in variables, shuffles, votes, atomics, the launch API.
#pragma once
#include "emu_streams.h"

// Built-in variables: what the running fiber is.
inline struct ThreadIdx {
  struct X {
    operator unsigned() const { return emu::S.cur->tid.x; }
  } x;
} threadIdx;
inline struct BlockIdx {
  struct X {
    operator unsigned() const { return emu::S.cur->blk->idx.x; }
  } x;
} blockIdx;
inline struct BlockDim {
  struct X {
    operator unsigned() const { return emu::S.cfg.block.x; }
  } x;
} blockDim;
inline struct GridDim {
  struct X {
    operator unsigned() const { return emu::S.cfg.grid.x; }
  } x;
} gridDim;
inline void __syncthreads(EMU_LOC) { emu::syncthreads(loc); }
inline void __syncwarp(uint32_t m = ~0u, EMU_LOC) { emu::collective(m, "__syncwarp", nullptr, nullptr, loc); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
namespace emu {
struct Shfl {
  uint64_t v, out;
  int src;
};
template <class T>
T shfl(uint32_t m, T v, int src, const char* kind, Loc loc) {  // src: lane to read from
  static_assert(sizeof(T) <= 8);
  Shfl x{0, 0, src};
  memcpy(&x.v, &v, sizeof v);
  collective(
      m, kind, &x,
      [](void** p, uint32_t mask) {
        for (int i = 0; i < 32; i++)
          if (mask >> i & 1) {
            auto* x = (Shfl*)p[i];
            if (!(mask >> x->src & 1))
              throw Error(fmt("shuffle in lane %d reads lane %d, which is not in mask %08x", i, x->src, mask));
            x->out = ((Shfl*)p[x->src])->v;
          }
      },
      loc);
  memcpy(&v, &x.out, sizeof v);
  return v;
}
inline int lane() { return S.cur->lane; }
}  // namespace emu
template <class T>
T __shfl_xor_sync(uint32_t m, T v, int x, int = 32, EMU_LOC) {
  return emu::shfl(m, v, emu::lane() ^ x, "__shfl_xor_sync", loc);
}
template <class T>
T __shfl_sync(uint32_t m, T v, int s, int = 32, EMU_LOC) {
  return emu::shfl(m, v, s & 31, "__shfl_sync", loc);
}
template <class T>
T __shfl_down_sync(uint32_t m, T v, int d, int = 32, EMU_LOC) {
  int s = emu::lane() + d;
  return emu::shfl(m, v, s > 31 ? emu::lane() : s, "__shfl_down_sync", loc);
}
template <class T>
T __shfl_up_sync(uint32_t m, T v, int d, int = 32, EMU_LOC) {
  int s = emu::lane() - d;
  return emu::shfl(m, v, s < 0 ? emu::lane() : s, "__shfl_up_sync", loc);
}
inline uint32_t __ballot_sync(uint32_t m, int pred, EMU_LOC) {
  uint64_t x = pred != 0;
  emu::collective(
      m, "__ballot_sync", &x,
      [](void** p, uint32_t mask) {
        uint64_t r = 0;
        for (int i = 0; i < 32; i++)
          if (mask >> i & 1) r |= *(uint64_t*)p[i] << i;
        for (int i = 0; i < 32; i++)
          if (mask >> i & 1) *(uint64_t*)p[i] = r;
      },
      loc);
  return (uint32_t)x;
}
inline int __any_sync(uint32_t m, int p, EMU_LOC) { return __ballot_sync(m, p, loc) != 0; }
inline int __all_sync(uint32_t m, int p, EMU_LOC) { return __ballot_sync(m, !p, loc) == 0; }
namespace emu {
template <class T, class F>
EMU_NOSAN T atomic(T* p, F f) {  // old value; f(old) is stored
  maybe_yield();
#ifdef EMU_RACE
  hb_acquire(rc().addr[p]);
  hb_release(rc().addr[p]);
#endif
  T o = *p;
  *p = (T)f(o);
  return o;
}
}  // namespace emu
template <class T, class U>
T atomicAdd(T* p, U v) {
  return emu::atomic(p, [=](T o) { return o + (T)v; });
}
template <class T, class U>
T atomicMax(T* p, U v) {
  return emu::atomic(p, [=](T o) { return std::max<T>(o, v); });
}
template <class T, class U>
T atomicExch(T* p, U v) {
  return emu::atomic(p, [=](T) { return (T)v; });
}
template <class T, class U, class V>
T atomicCAS(T* p, U c, V v) {
  return emu::atomic(p, [=](T o) { return o == (T)c ? (T)v : o; });
}
template <class T, class U, class V>
T atomicCAS_system(T* p, U c, V v) {
  return atomicCAS(p, c, v);
}
template <class T, class U>
void __stcg(T* p, U v) {
  *p = (T)v;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
namespace cooperative_groups {
struct grid_group {
  void sync(EMU_LOC) const { emu::grid_sync(loc); }
  unsigned long long thread_rank() const { return (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; }
};
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups

// ---------------------------------------------------------------- host side: the launch API, with the limits of a
// H100
enum {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorInvalidClusterSize = 912
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed
};
enum {
  cudaLaunchAttributeClusterDimension,
  cudaLaunchAttributeClusterSchedulingPolicyPreference,
  cudaLaunchAttributeCooperative,
  cudaClusterSchedulingPolicySpread
};
struct cudaLaunchAttribute {
  int id;
  struct {
    dim3 clusterDim;
    int clusterSchedulingPolicyPreference, cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  int numAttrs = 0;
};
namespace emu {
inline std::map<void*, std::map<int, int>> func_attr;
// Whether a number of failures that a test has planted is still above 0; one is taken away.
inline bool fails(int& planted) { return planted > 0 && planted-- > 0; }
}  // namespace emu
inline const char* cudaGetErrorString(cudaError_t) { return "a planted failure"; }
template <class K>
cudaError_t cudaFuncSetAttribute(K* k, cudaFuncAttribute a, int v) {
  if (a == cudaFuncAttributeMaxDynamicSharedMemorySize && v > 227 << 10) return cudaErrorInvalidValue;
  emu::func_attr[(void*)k][a] = v;
  return 0;
}
template <class K>
cudaError_t cudaOccupancyMaxActiveClusters(int* n, K* k, const cudaLaunchConfig_t* c) {
  if (emu::fails(emu::opt.fail_queries)) return cudaErrorLaunchOutOfResources;
  const int size = (int)c->attrs[0].val.clusterDim.x;
  if (size > 8 && !emu::func_attr[(void*)k][cudaFuncAttributeNonPortableClusterSizeAllowed])
    return cudaErrorInvalidClusterSize;
  *n = size <= emu::opt.max_cluster ? emu::opt.sms / size : 0;
  return 0;
}
struct cudaFuncAttributes {
  int ptxVersion;
};
template <class K>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, K*) {
  if (emu::opt.no_image) return cudaErrorNoKernelImageForDevice;
  a->ptxVersion = 90;
  return 0;
}
inline cudaError_t cudaGetLastError() { return 0; }
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emu::opt.sms : 227 << 10;
  return 0;
}
template <class K>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, K*, int, size_t) {
  *n = 1;
  return 0;
}
enum { cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
// Host memory that the device sees: there is only one kind of memory here.
inline cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  if (emu::prohibited()) return kEmuUnsupported;
  *p = malloc(n);
  return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeHost(void* p) {
  free(p);
  return 0;
}
inline cudaError_t cudaHostGetDevicePointer(void** there, void* host, unsigned) {
  *there = host;
  return 0;
}
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*k)(P...), A... a) {
  if (emu::fails(emu::opt.fail_launches)) return cudaErrorLaunchOutOfResources;
  emu::Config e{c->gridDim, c->blockDim, c->dynamicSmemBytes};
  for (int i = 0; i < c->numAttrs; i++) {
    if (c->attrs[i].id == cudaLaunchAttributeClusterDimension) e.cluster = (int)c->attrs[i].val.clusterDim.x;
    if (c->attrs[i].id == cudaLaunchAttributeCooperative) e.cooperative = c->attrs[i].val.cooperative;
  }
  const auto note = [](const auto& of) {
    if constexpr (requires { of.whole_tiles; }) emu::opt.whole_tiles = of.whole_tiles;
  };
  (note(a), ...);
  auto& at = emu::func_attr[(void*)k];
  if (e.smem > 48 << 10 && (int)e.smem > at[cudaFuncAttributeMaxDynamicSharedMemorySize])
    return cudaErrorInvalidValue;
  if (e.cluster > 16 || (e.cluster > 8 && !at[cudaFuncAttributeNonPortableClusterSizeAllowed]))
    return cudaErrorInvalidClusterSize;
  emu::submit(c->stream, emu::Work([=] { emu::launch(e, std::function<void()>([=] { k((P)a...); })); }));
  return 0;
}
