// Forward pass of a layer: one GEMM for the input's part of all gates, unless the time loop's kernel makes that too,
// then the time loop. That of the stepwise
// tier is here: a GEMM and a pointwise kernel a step (with a projection one more of each).
#include "cuda/persistent/loop.h"
#include "cuda/torch/layer.h"

namespace fastrnn::cuda {
namespace {

// hn and c hold every row's state while the loop runs. A row that has ended, or has not begun, is not touched, so
// that in the end each row's last state is there, whatever the direction.
void run_stepwise(const Layer& layer, const ForwardSequence& s) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, G = layer.G;
  const bool lstm = layer.is(CellKind::kLstm), gru = layer.is(CellKind::kGru), projected = shape.P > 0;
  const bool converts = layer.compute != layer.type;

  const Tensor& hn = s.hn;
  copy(hn, s.h0);
  const Tensor c = lstm && converts ? layer.make_compute({D, B, H}) : s.cn;
  if (lstm) copy(c, *s.c0);
  const Tensor rec = layer.make_compute({D, B, G * H});
  const Tensor m = projected ? layer.make({D, B, H}) : hn;
  // What a GRU adds to its new h is the old one in full precision, not as rounded for the product.
  Tensor h_state = hn;
  if (gru && converts) {
    h_state = layer.make_compute({D, B, H});
    copy(h_state, s.h0);
  }

  StepProduct recurrent(layer, hn, transposed_each(layer.stacked_w_hh()), rec);
  std::optional<StepProduct> project;
  // Not into hn itself: a product writes all rows, and some may have ended.
  const std::optional<Tensor> h = projected ? std::optional(layer.make({D, B, shape.P})) : std::nullopt;
  if (projected) project.emplace(layer, m, transposed_each(layer.stacked_w_hr()), *h);

  ForwardStep step;
  step.table = layer.table();
  step.gx = s.gx.data_ptr();
  step.gx_stride = s.gx.size(2);
  step.rec = rec.data_ptr();
  const std::optional<Tensor> bias = layer.combined_bias();
  step.bias = data(bias);
  if (gru) step.h_state = h_state.data_ptr();
  if (lstm) step.c = c.data_ptr();
  step.h = m.data_ptr();
  if (!projected) step.y = s.y.data_ptr();
  if (s.save_gates) step.gates = s.gates.data_ptr();
  if (s.save_cells) step.cells = s.cells.data_ptr();

  for (int64_t t = 0; t < shape.T; ++t) {
    step.rows = layer.rows_at(t);
    StepRows state;  // of the (D,B,.) buffers: as many rows, from the first
    state.count[0] = step.rows.count[0];
    state.count[1] = step.rows.count[1];
    recurrent(state);
    check_cuda(forward_step(layer.step_shape(), step, layer.stream));
    if (projected) {
      (*project)(state);
      check_cuda(store_output(layer.step_shape(), step.rows, step.table, shape.P, h->data_ptr(), s.y.data_ptr(),
                              hn.data_ptr(), layer.stream));
    }
  }
  if (lstm && converts) copy(s.cn, c);
}

}  // namespace

// Memory beyond the results: x's part of the gates, (D,N,G*H) in the layer's type, except where gates
// are saved (it then lies in them and is overwritten step by step), and a few (D,B,.) buffers.
Forward forward(const Layer& layer, const Tensor& h0, const std::optional<Tensor>& c0, Save save, Tier wanted) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, N = layer.N, G = layer.G;
  const bool lstm = layer.is(CellKind::kLstm);
  const CudaPlan plan = plan_pass(layer, Pass::kForward, wanted);

  ForwardSequence s{.h0 = h0,
                    .c0 = c0,
                    .gx = layer.make({0}),
                    .y = layer.make(layer.output_sizes()),
                    .hn = layer.make({D, B, shape.out_size()}),
                    .cn = lstm ? layer.make({D, B, H}) : layer.make({0}),
                    .save_gates = save == Save::kGates && layer.saved,
                    .save_cells = save != Save::kNothing && lstm,
                    .gates = layer.make({0}),
                    .cells = layer.make_compute({0})};
  if (s.save_gates) s.gates = layer.make({D, N, layer.saved * H});
  if (s.save_cells) s.cells = layer.make_compute({D, N, H});
  if (B > 0) {
    s.gx = s.save_gates ? s.gates : layer.make({D, N, G * H});
    const auto project = [&] {
      for (int d = 0; d < D; ++d) {
        multiply(columns(slice(s.gx, d), 0, G * H), layer.x(), transposed(layer.w_ih(d)), layer.tf32);
      }
    };
    if (!plan.projects) project();
    // Beyond the rows' lengths the loops write nothing. x's part of the gates, where it lies in them, is not read
    // there.
    layer.clear_padding(s.y, 1);
    if (s.save_gates) layer.clear_padding(s.gates, D);
    if (s.save_cells) layer.clear_padding(s.cells, D);
    const bool persistent = plan.tier != Tier::kStepwise && shape.T > 0;
    if (!persistent || !run_persistent(layer, plan, s)) {
      if (plan.projects) project();
      run_stepwise(layer, s);
    }
  }
  return {s.y, s.hn, s.cn, s.gates, s.cells};
}

}  // namespace fastrnn::cuda
