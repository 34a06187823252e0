// The stepwise tier's time loop of the forward pass: a GEMM and a pointwise kernel a step, with a projection one more
// of each.
#include "cuda/stepwise/loop.h"
#include "cuda/stepwise/product.h"

namespace fastrnn::cuda {

// hn and c hold every row's state while the loop runs. A row that has ended, or has not begun, is not touched, so
// that in the end each row's last state is there, whatever the direction.
void run_stepwise(const Layer& layer, const ForwardSequence& s) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, G = layer.G;
  const CellFacts& cell = facts_of(shape.cell);
  const bool projected = shape.P > 0;
  const bool converts = layer.compute != layer.type;

  const Tensor& hn = s.hn;
  copy(hn, s.h0);
  const Tensor c = cell.has_cell && converts ? layer.make_compute({D, B, H}) : s.cn;
  if (cell.has_cell) copy(c, *s.c0);
  const Tensor rec = layer.make_compute({D, B, G * H});
  const Tensor m = projected ? layer.make({D, B, H}) : hn;
  // What goes from the old h into the new one past the product does so in full precision, not as rounded for that.
  Tensor h_state = hn;
  if (cell.split && converts) {
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
  if (cell.split) step.h_state = h_state.data_ptr();
  if (cell.has_cell) step.c = c.data_ptr();
  step.h = m.data_ptr();
  if (!projected) step.y = s.y.data_ptr();
  if (s.save_gates) step.gates = s.gates.data_ptr();
  if (s.save_cells) step.cells = s.cells.data_ptr();

  // The stages of a step (cells/cell.h): product; gates, cell and the unit's half of the state; the output's half.
  for (int64_t t = 0; t < shape.T; ++t) {
    step.rows = layer.rows_at(t);
    const StepRows state = step.rows.of_states();
    recurrent(state);
    check_cuda(forward_step(layer.step_shape(), step, layer.stream));
    if (projected) {
      (*project)(state);
      check_cuda(store_output(layer.step_shape(), step.rows, step.table, shape.P, h->data_ptr(), step.h_state,
                              s.y.data_ptr(), hn.data_ptr(), layer.stream));
    }
  }
  if (cell.has_cell && converts) copy(s.cn, c);
}

}  // namespace fastrnn::cuda
