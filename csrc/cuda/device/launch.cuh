// What every launch of a kernel needs: its configuration, and the choice of an instance by type.
#pragma once
#include <limits>

#include "cuda/device/types.cuh"
#include "params/rnn.h"

namespace fastrnn::cuda {

// Lets a kernel have so many bytes of dynamic shared memory a block; it has no other. Always the device's most: the
// limit belongs to the kernel, not to a launch, and another thread may be about to launch it with more.
inline int allow_shared(const void* kernel, int64_t bytes) {
  constexpr int64_t kPlain = 48 << 10;  // what a block has without asking
  if (bytes <= kPlain) return cudaSuccess;
  int device = 0, most = 0;
  int error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess && bytes > most) error = cudaErrorInvalidValue;
  return error == cudaSuccess ? cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most)
                              : error;
}

// A one-dimensional grid with `shared` bytes of dynamic shared memory a block; no blocks is no launch.
// Returns a cudaError_t as int.
template <class... Params, class... Args>
int launch_shared(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared, void* stream,
                  Args... args) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidValue;
  const int error = allow_shared(reinterpret_cast<const void*>(kernel), shared);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = static_cast<cudaStream_t>(stream);
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}
template <class... Params, class... Args>
int launch(void (*kernel)(Params...), int64_t blocks, int threads, void* stream, Args... args) {
  return launch_shared(kernel, blocks, threads, 0, stream, args...);
}

template <class T>
struct TypeTag {
  using Type = T;
};

// f(TypeTag<T>) of the layer's type.
template <class F>
int with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat:
      return f(TypeTag<float>{});
    case Dtype::kDouble:
      return f(TypeTag<double>{});
    case Dtype::kBFloat16:
      return f(TypeTag<__nv_bfloat16>{});
    case Dtype::kHalf:
      return f(TypeTag<__half>{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastrnn::cuda
