// Forward pass of a layer in the stepwise tier: one GEMM for the input's part of all gates, then a GEMM
// and a pointwise kernel a step (with a projection one more of each).
#include "ops_cuda.h"

namespace fastrnn::cuda {

// Memory beyond the results: x's part of the gates, (D,N,G*H) in the layer's type, except where gates
// are saved (it then lies in them and is overwritten step by step), and a few (D,B,.) buffers.
//
// hn and c hold every row's state while the loop runs. A row of a packed sequence that has ended, or has
// not begun, is not touched, so that in the end each row's last state is there, whatever the direction.
Forward forward(const Layer& layer, const Tensor& h0, const std::optional<Tensor>& c0, Save save) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, N = layer.N, G = layer.G, width = shape.out_size();
  const bool lstm = layer.is(CellKind::kLstm), gru = layer.is(CellKind::kGru), projected = shape.P > 0;

  const Tensor y = layer.make(layer.output_sizes());
  const Tensor hn = layer.make({D, B, width});
  copy(hn, h0);
  Tensor cn = layer.make({0}), c = cn;
  if (lstm) {
    c = layer.make_compute({D, B, H});
    copy(c, *c0);
  }
  const bool save_gates = save == Save::kGates && layer.saved;
  const bool save_cells = save != Save::kNothing && lstm;
  const Tensor gates = save_gates ? layer.make({D, N, layer.saved * H}) : layer.make({0});
  const Tensor cells = save_cells ? layer.make_compute({D, N, H}) : layer.make_compute({0});

  if (B > 0) {
    const Tensor gx = save_gates ? gates : layer.make({D, N, G * H});
    for (int d = 0; d < D; ++d) multiply(columns(slice(gx, d), 0, G * H), layer.x(), transposed(layer.w_ih(d)));
    const std::optional<Tensor> bias = layer.combined_bias();

    const Tensor rec = layer.make_compute({D, B, G * H});
    const Tensor m = projected ? layer.make({D, B, H}) : hn;
    // What a GRU adds to its new h is the old one in full precision, not as rounded for the product.
    Tensor h_state = hn;
    if (gru && layer.compute != layer.type) {
      h_state = layer.make_compute({D, B, H});
      copy(h_state, h0);
    }

    StepProduct recurrent(hn, transposed_each(layer.stacked_w_hh()), rec);
    std::optional<StepProduct> project;
    if (projected) project.emplace(m, transposed_each(layer.stacked_w_hr()), hn);

    ForwardStep step;
    step.gx = gx.data_ptr();
    step.gx_stride = gx.size(2);
    step.rec = rec.data_ptr();
    step.bias = data(bias);
    if (gru) step.h_state = h_state.data_ptr();
    if (lstm) step.c = c.data_ptr();
    step.h = m.data_ptr();
    if (!projected) step.y = y.data_ptr();
    if (save_gates) step.gates = gates.data_ptr();
    if (save_cells) step.cells = cells.data_ptr();

    for (int64_t s = 0; s < shape.T; ++s) {
      step.rows = layer.rows_at(s);
      StepRows state;  // of the (D,B,.) buffers: as many rows, from the first
      state.count[0] = step.rows.count[0];
      state.count[1] = step.rows.count[1];
      recurrent(state);
      check_cuda(forward_step(layer.step_shape(), step, layer.stream));
      if (projected) {
        (*project)(state);
        check_cuda(store_output(layer.step_shape(), step.rows, shape.P, hn.data_ptr(), y.data_ptr(), layer.stream));
      }
    }
  }
  if (lstm) {
    if (layer.compute == layer.type) {
      cn = c;
    } else {
      cn = layer.make({D, B, H});
      copy(cn, c);
    }
  }
  return {y, hn, cn, gates, cells};
}

}  // namespace fastrnn::cuda
