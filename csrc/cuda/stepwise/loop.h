// A pass of a layer step by step, for ops/rnn_forward.cpp and ops/rnn_backward.cpp: what every layer can do.
#pragma once
#include "cuda/torch/sequence.h"

namespace fastrnn::cuda {

void run_stepwise(const Layer& layer, const ForwardSequence& sequence);
void run_stepwise(const Layer& layer, const BackwardSequence& sequence);

}  // namespace fastrnn::cuda
