// A pass of a layer step by step, for ops/rnn_forward.cpp and ops/rnn_backward.cpp: what every layer can do. A pass
// is its loop's own tensors (make), what they begin with (begin), the time loop, and what is left to do (end): a
// graph (graphs.h) keeps the first and captures the third.
#pragma once
#include "cuda/stepwise/kernels.h"
#include "cuda/stepwise/product.h"
#include "cuda/torch/sequence.h"

namespace fastrnn::cuda {

void run_stepwise(const Layer& layer, const ForwardSequence& sequence);
void run_stepwise(const Layer& layer, const BackwardSequence& sequence);

// What the loop of forward needs beside its sequence. Shapes in stepwise/kernels.h.
struct ForwardBuffers {
  Tensor w_hh;  // (D,G*H,Hout)
  std::optional<Tensor> w_hr, bias;
  Tensor c, rec, m, h_state;  // c: cn itself, m and h_state: hn itself, where they may be
  std::optional<Tensor> h;    // with a projection: its product
};
// own_weights: copies, which no change of the layer's weights reaches, to be filled by fill_weights().
ForwardBuffers make_buffers(const Layer& layer, const ForwardSequence& s, bool own_weights);
void fill_weights(const Layer& layer, const ForwardBuffers& buffers);
// from: whose h0 and c0 the states of `s` begin with.
void begin(const Layer& layer, const ForwardSequence& from, const ForwardSequence& s, const ForwardBuffers& buffers);
void loop(const Layer& layer, const ForwardSequence& s, const ForwardBuffers& buffers, const RowTable& table,
          const Lane& lane);
void end(const Layer& layer, const ForwardSequence& s, const ForwardBuffers& buffers);

// And of backward.
struct BackwardBuffers {
  Tensor w_hh;
  std::optional<Tensor> w_hr;
  Tensor dh, dm;                     // dm: dh itself without a projection
  std::optional<Tensor> dc, direct;  // where the cell, or rows that wait, have them
};
BackwardBuffers make_buffers(const Layer& layer, const BackwardSequence& s, bool own_weights);
void fill_weights(const Layer& layer, const BackwardBuffers& buffers);
// from: whose gradients of the last states the loop begins with.
void begin(const Layer& layer, const BackwardSequence& from, const BackwardBuffers& buffers);
void loop(const Layer& layer, const BackwardSequence& s, const BackwardBuffers& buffers, const RowTable& table,
          const Lane& lane);
// to: whose dh0 and dc0 are filled, where wanted.
void end(const Layer& layer, const BackwardSequence& to, const BackwardBuffers& buffers);

// A (D,B,.) gradient of the compute type to begin with, or zeros.
inline void fill_gradient(const Tensor& out, const std::optional<Tensor>& grad) {
  if (grad) {
    copy(out, *grad);
  } else {
    zero(out);
  }
}
inline Tensor final_gradient(const Layer& layer, const std::optional<Tensor>& grad, const Sizes& sizes) {
  const Tensor out = layer.make_compute(sizes);
  fill_gradient(out, grad);
  return out;
}

// out = a + b, (D,B,.) gradients of the compute type as a result.
inline void store_gradient(const Layer& layer, const Tensor& out, const Tensor& a, const std::optional<Tensor>& b) {
  check_cuda(initial_gradient(layer.step_shape(), layer.table(), a.size(2), a.data_ptr(), data(b), out.data_ptr(),
                              layer.stream));
}

}  // namespace fastrnn::cuda
