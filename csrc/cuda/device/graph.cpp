#include "cuda/device/graph.h"

namespace fastrnn::cuda {
namespace {

int forgotten(int error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const int error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  return forgotten(error) != cudaSuccess || status != cudaStreamCaptureStatusNone;
}

Graph::~Graph() {
  if (!exec_) return;
  const OutsideCapture outside;
  forgotten(cudaGraphExecDestroy(exec_));
}

int Graph::capture(void*& stream, const std::function<int(void* stream)>& record) {
  const OutsideCapture outside;
  if (!stream) {
    cudaStream_t made = nullptr;
    const int error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
    if (error != cudaSuccess) return forgotten(error);
    stream = made;
  }
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  // Relaxed: other threads' calls are none of this capture's business, nor are kernels that are loaded late.
  int error = cudaStreamBeginCapture(on, cudaStreamCaptureModeRelaxed);
  if (error != cudaSuccess) return forgotten(error);
  cudaGraph_t graph = nullptr;
  try {
    error = record(stream);
  } catch (...) {
    forgotten(cudaStreamEndCapture(on, &graph));
    if (graph) forgotten(cudaGraphDestroy(graph));
    throw;
  }
  const int ended = cudaStreamEndCapture(on, &graph);
  if (error == cudaSuccess) error = ended;
  cudaGraphExec_t exec = nullptr;
  if (error == cudaSuccess) error = cudaGraphInstantiate(&exec, graph, 0);
  if (graph) forgotten(cudaGraphDestroy(graph));
  if (error == cudaSuccess) exec_ = exec;
  return forgotten(error);
}

int Graph::launch(void* stream) const { return forgotten(cudaGraphLaunch(exec_, static_cast<cudaStream_t>(stream))); }

}  // namespace fastrnn::cuda
