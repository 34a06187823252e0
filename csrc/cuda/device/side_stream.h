// A second stream beside a caller's, for work that may run while the caller's does.
#pragma once
#include "cuda/device/runtime.cuh"

namespace fastrnn::cuda {

// Of the current device. Work goes to stream() between fork(), behind which it sees what the caller's stream has
// done, and join(), behind which the caller's stream waits for it. The destructor joins too, so that whatever ends
// the scope, memory that is freed after it is not in use on the other stream. Errors are cudaError_t as int.
class SideStream {
 public:
  SideStream(int device, void* callers) : callers_(static_cast<cudaStream_t>(callers)) {
    error_ = of_device(device, stream_);
    if (error_ == cudaSuccess) error_ = cudaEventCreateWithFlags(&event_, cudaEventDisableTiming);
  }
  ~SideStream() {
    if (busy_) join();
    if (event_) cudaEventDestroy(event_);
  }
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  void* stream() {
    busy_ = true;
    return stream_;
  }
  int fork() { return error_ == cudaSuccess ? wait(stream_, callers_) : error_; }
  int join() {
    busy_ = false;
    return wait(callers_, stream_);
  }

 private:
  // A wait is for what the event has recorded when it is asked for: one event does for all.
  int wait(cudaStream_t waiting, cudaStream_t for_stream) {
    const int error = cudaEventRecord(event_, for_stream);
    return error == cudaSuccess ? cudaStreamWaitEvent(waiting, event_, 0) : error;
  }
  // One a device, for good, of the lowest priority: the caller's kernels find their SMs first.
  static int of_device(int device, cudaStream_t& stream);

  cudaStream_t callers_, stream_ = nullptr;
  cudaEvent_t event_ = nullptr;
  bool busy_ = false;
  int error_ = cudaSuccess;
};

}  // namespace fastrnn::cuda
