#include "cuda/device/side_stream.h"

#include <array>
#include <mutex>

#include "cuda/device/graph.h"

namespace fastrnn::cuda {

int SideStream::of_device(int device, cudaStream_t& stream) {
  constexpr int kMost = 64;
  static std::array<cudaStream_t, kMost> streams = {};
  static std::mutex mutex;
  if (device < 0) device = 0;
  if (device >= kMost) return cudaErrorInvalidValue;
  const std::lock_guard lock(mutex);
  if (!streams[device]) {
    const OutsideCapture outside;
    int least = 0, greatest = 0;
    int error = cudaDeviceGetStreamPriorityRange(&least, &greatest);
    if (error == cudaSuccess) error = cudaStreamCreateWithPriority(&streams[device], cudaStreamNonBlocking, least);
    if (error != cudaSuccess) return error;
  }
  stream = streams[device];
  return cudaSuccess;
}

}  // namespace fastrnn::cuda
