// Launches that are captured once and launched again as one CUDA graph. Errors are cudaError_t as int, as elsewhere.
#pragma once
#include <functional>

#include "cuda/device/runtime.cuh"

namespace fastrnn::cuda {

// While it lives, what this thread does is no part of a capture that is under way in another one, or around this
// call: calls that such captures prohibit (allocations of CUDA's own, streams, executable graphs) do them no harm.
class OutsideCapture {
 public:
  OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  OutsideCapture(const OutsideCapture&) = delete;
  OutsideCapture& operator=(const OutsideCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Whether work on the stream goes into somebody's capture, or nobody can say: the default stream while others are
// captured that wait for it.
bool is_capturing(void* stream);

class Graph {
 public:
  Graph() = default;
  // The runtime keeps a graph that still runs until it is done.
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // What `record` launches on the stream that it is given: one of the process' own for captures, as the default
  // stream cannot be captured, nor the caller's be left in a capture that has failed. Nothing of it runs. One caller
  // at a time for a `stream`, which begins as null and is made by the first capture. Whatever goes wrong, exceptions
  // included, the capture is over behind it and the runtime's memory of the error is cleared.
  int capture(void*& stream, const std::function<int(void* stream)>& record);
  int launch(void* stream) const;
  explicit operator bool() const { return exec_; }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace fastrnn::cuda
