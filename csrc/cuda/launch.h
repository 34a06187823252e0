// What every launch of a kernel needs: its configuration, and the choice of an instance by type.
#pragma once
#include <limits>

#include "device.cuh"
#include "params.h"

namespace fastrnn::cuda {

// A one-dimensional grid with `shared` bytes of dynamic shared memory a block; no blocks is no launch.
// Returns a cudaError_t as int.
template <class... Params, class... Args>
int launch_shared(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared, void* stream,
                  Args... args) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidValue;
  if (shared > 48 << 10) {  // what a block has without asking
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return static_cast<int>(error);
  }
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
