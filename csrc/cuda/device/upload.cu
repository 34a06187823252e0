#include "cuda/device/upload.h"

#include <algorithm>

#include "cuda/device/launch.cuh"

namespace fastrnn::cuda {
namespace {

struct Batch {
  int64_t values[kUploadBatch];
};

__global__ void upload_kernel(const Batch batch, int count, int64_t* device) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < count) device[i] = batch.values[i];
}

}  // namespace

int upload(const int64_t* host, int64_t n, int64_t* device, void* stream) {
  for (int64_t first = 0; first < n; first += kUploadBatch) {
    const int count = static_cast<int>(std::min<int64_t>(n - first, kUploadBatch));
    Batch batch = {};
    std::copy_n(host + first, count, batch.values);
    const int error = launch(upload_kernel, 1, 512, stream, batch, count, device + first);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

int has_image(bool& found) {
  cudaFuncAttributes attributes = {};
  const int error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(upload_kernel));
  found = error == cudaSuccess;
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();  // the runtime's memory of it
    return cudaSuccess;
  }
  return error;
}

}  // namespace fastrnn::cuda
