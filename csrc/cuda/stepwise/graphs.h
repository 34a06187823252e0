// The stepwise tier as CUDA graphs: its time loop is captured once for each kind of call, and launched as one.
//
// A graph names memory for good, so all that it names is its own: copies of the sequence, the weights, the states and
// the tables of rows, which every call fills before the launch and reads behind it, and the workspace of its
// products. Nothing of a caller's is in it: weights may change or move, tensors come and go, and so may the pool that
// a caller's memory is of. It belongs to one stream, in whose order its memory is used, and to one call at a time: a
// second one at the same time makes its own.
//
// Kept for later calls: kMostGraphs of a device, kMostKept bytes in all, those used last; unasked none makes way for
// another while both are in use. Given back by release_graphs(), to torch's allocator.
#pragma once
#include "cuda/torch/sequence.h"

namespace fastrnn::cuda {

constexpr int kMostGraphs = 16;
constexpr int64_t kMostKept = 512 << 20;

// Both fill the sequence's results and return true; or they do nothing and return false, and a step at a time does:
// while the caller captures, whose graph takes the steps; where cuBLAS is not a library that can be found; unless the
// tier was asked for by name, at the first call of a kind, which may be the last, and while as many others are in
// use; where the device has no room for the copies, and what was kept is given back; and where the runtime or cuBLAS
// could not capture or launch, which is told of once. By name the first call makes one, and the others but the
// caller's capture are errors.
bool run_graph(const Layer& layer, const CudaPlan& plan, const ForwardSequence& sequence);
bool run_graph(const Layer& layer, const CudaPlan& plan, const BackwardSequence& sequence);

// Bytes that are given back, of all devices.
int64_t release_graphs();

}  // namespace fastrnn::cuda
