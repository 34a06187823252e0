// A pass of a layer in one launch, for ops/rnn_forward.cpp and ops/rnn_backward.cpp.
#pragma once
#include "cuda/torch/sequence.h"

namespace fastrnn::cuda {

// Both return false, with nothing launched, where the device has no room for the whole grid at once just now (a
// part of it belongs to somebody else) or the launch failed: the stepwise tier then does the same work. A tier that
// was asked for by name is an error instead, once clusters of no certain size have tried smaller ones.
bool run_persistent(const Layer& layer, const CudaPlan& plan, const ForwardSequence& sequence);
bool run_persistent(const Layer& layer, const CudaPlan& plan, const BackwardSequence& sequence);

}  // namespace fastrnn::cuda
