// The stepwise tier's time loop of the backward pass: a pointwise kernel and a GEMM a step, with a projection one
// more of each.
#include "cuda/stepwise/loop.h"
#include "cuda/stepwise/product.h"

namespace fastrnn::cuda {

// dh, dc and direct hold every row's gradient while the loop runs, as hn and c do in forward: a row that does not
// run waits in them with the gradient of its last state until its last step is reached. Where the products write
// dh for the rows that wait too, which they do with lengths, it waits in direct.
void run_stepwise(const Layer& layer, const BackwardSequence& s) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, N = layer.N, width = shape.out_size();
  const CellFacts& cell = facts_of(shape.cell);
  const bool projected = shape.P > 0;

  const std::optional<Tensor> none;
  const bool waits = layer.has_lengths();
  const Tensor dh = final_gradient(layer, waits ? none : s.grad_hn, {D, B, width});
  const std::optional<Tensor> dc = cell.has_cell ? std::optional(final_gradient(layer, s.grad_cn, {D, B, H})) : none;
  const std::optional<Tensor> direct =
      cell.split || waits ? std::optional(final_gradient(layer, waits ? s.grad_hn : none, {D, B, width})) : none;
  const Tensor dm = projected ? layer.make_compute({D, B, H}) : dh;  // gradient of h before the projection

  const int64_t first_column = (layer.recurrent_gates - layer.G) * H;
  const Tensor recurrent_part =
      view(s.dgates, {D, N, layer.G * H}, {s.dgates.stride(0), s.dgates.stride(1), 1}, first_column);
  StepProduct recurrent(layer, recurrent_part, layer.stacked_w_hh(), dh);
  std::optional<StepProduct> project;
  if (projected) project.emplace(layer, *s.dh_y, layer.stacked_w_hr(), dm);

  BackwardStep step;
  step.table = layer.table();
  step.gates = s.gates.data_ptr();
  step.cells = s.cells.data_ptr();
  step.c0 = data(s.c0);
  step.y = s.y.data_ptr();
  step.h0 = s.h0.data_ptr();
  step.grad_y = projected ? nullptr : data(s.grad_y);
  step.dh = dm.data_ptr();
  step.dh_is_whole = projected;
  step.direct = projected ? nullptr : data(direct);
  step.grad_cells = data(s.grad_cells);
  step.dc = data(dc);
  step.dgates = s.dgates.data_ptr();
  step.m = data(s.m);

  // The stages of a step in reverse: the output's half of the state; the unit's half, cell and gates; product.
  for (int64_t t = shape.T - 1; t >= 0; --t) {
    step.rows = layer.rows_at(t);
    step.previous = layer.rows_at(t - 1);
    if (projected) {
      check_cuda(sum_output_gradient(layer.step_shape(), step.rows, step.table, shape.P, data(s.grad_y),
                                     dh.data_ptr(), data(direct), s.dh_y->data_ptr(), layer.stream));
      (*project)(step.rows);
    }
    check_cuda(backward_step(layer.step_shape(), step, layer.stream));
    if (t > 0 || s.dh0) recurrent(step.rows);
  }
  if (s.dh0) store_gradient(layer, *s.dh0, dh, direct);
  if (s.dc0) store_gradient(layer, *s.dc0, *dc, std::nullopt);
}

}  // namespace fastrnn::cuda
