// A pass of a layer in one launch, for ops/rnn_forward.cpp and ops/rnn_backward.cpp.
#pragma once
#include <functional>

#include "cuda/torch/sequence.h"

namespace fastrnn::cuda {

// Both return false, with nothing launched, where the device has no room for the whole grid at once just now (a
// part of it belongs to somebody else) or the launch failed: the stepwise tier then does the same work. A tier that
// was asked for by name is an error instead, once clusters of no certain size have tried smaller ones.
bool run_persistent(const Layer& layer, const CudaPlan& plan, const ForwardSequence& sequence);
bool run_persistent(const Layer& layer, const CudaPlan& plan, const BackwardSequence& sequence);

// Makes x's part of the gates of the rows [first, first + count), on torch's current stream.
using Project = std::function<void(int64_t first, int64_t count)>;
// A forward pass in plan.chunks launches, each of which begins when its own part of the product is there: the parts
// are made on a stream beside, on the SMs that the loops leave idle. Between chunks the states go through memory in
// the layer's type, as between two calls. Errors as above; where it returns false some of the product may be made.
// Not while the caller captures, whose graph would take the other stream along.
bool run_overlapped(const Layer& layer, const CudaPlan& plan, const ForwardSequence& sequence,
                    const Project& project);

}  // namespace fastrnn::cuda
