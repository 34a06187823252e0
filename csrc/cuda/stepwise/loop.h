// A pass of a layer step by step, for ops/rnn_forward.cpp and ops/rnn_backward.cpp: what every layer can do.
#pragma once
#include "cuda/stepwise/kernels.h"
#include "cuda/torch/sequence.h"

namespace fastrnn::cuda {

void run_stepwise(const Layer& layer, const ForwardSequence& sequence);
void run_stepwise(const Layer& layer, const BackwardSequence& sequence);

// A (D,B,.) gradient of the compute type to begin with, or zeros.
inline Tensor final_gradient(const Layer& layer, const std::optional<Tensor>& grad, const Sizes& sizes) {
  if (!grad) return layer.make_zeros(sizes, layer.compute);
  const Tensor out = layer.make_compute(sizes);
  copy(out, *grad);
  return out;
}

// out = a + b, (D,B,.) gradients of the compute type as a result.
inline void store_gradient(const Layer& layer, const Tensor& out, const Tensor& a, const std::optional<Tensor>& b) {
  check_cuda(initial_gradient(layer.step_shape(), layer.table(), a.size(2), a.data_ptr(), data(b), out.data_ptr(),
                              layer.stream));
}

}  // namespace fastrnn::cuda
