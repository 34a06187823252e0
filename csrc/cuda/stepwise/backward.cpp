// The stepwise tier's time loop of the backward pass: a pointwise kernel and a GEMM a step, with a projection one
// more of each.
#include "cuda/stepwise/loop.h"

namespace fastrnn::cuda {

BackwardBuffers make_buffers(const Layer& layer, const BackwardSequence&, bool own_weights) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, G = layer.G, width = shape.out_size();
  const CellFacts& cell = facts_of(shape.cell);
  const bool projected = shape.P > 0;

  BackwardBuffers out;
  out.w_hh = own_weights ? layer.make({D, G * H, width}) : layer.stacked_w_hh();
  if (projected) out.w_hr = own_weights ? layer.make({D, width, H}) : layer.stacked_w_hr();
  out.dh = layer.make_compute({D, B, width});
  if (cell.has_cell) out.dc = layer.make_compute({D, B, H});
  if (cell.split || layer.has_lengths()) out.direct = layer.make_compute({D, B, width});
  out.dm = projected ? layer.make_compute({D, B, H}) : out.dh;  // gradient of h before the projection
  return out;
}

void fill_weights(const Layer& layer, const BackwardBuffers& buffers) {
  layer.stack_w_hh(buffers.w_hh);
  if (buffers.w_hr) layer.stack_w_hr(*buffers.w_hr);
}

// dh, dc and direct hold every row's gradient while the loop runs, as hn and c do in forward: a row that does not
// run waits in them with the gradient of its last state until its last step is reached. Where the products write
// dh for the rows that wait too, which they do with lengths, it waits in direct.
void begin(const Layer& layer, const BackwardSequence& from, const BackwardBuffers& buffers) {
  const std::optional<Tensor> none;
  const bool waits = layer.has_lengths();
  fill_gradient(buffers.dh, waits ? none : from.grad_hn);
  if (buffers.dc) fill_gradient(*buffers.dc, from.grad_cn);
  if (buffers.direct) fill_gradient(*buffers.direct, waits ? from.grad_hn : none);
}

void loop(const Layer& layer, const BackwardSequence& s, const BackwardBuffers& buffers, const RowTable& table,
          const Lane& lane) {
  const LayerShape& shape = layer.shape();
  const bool projected = shape.P > 0;
  const Tensor &dh = buffers.dh, &dm = buffers.dm;
  const int64_t first_column = (layer.recurrent_gates - layer.G) * shape.H;
  const Tensor recurrent_part = view(s.dgates, {shape.D, layer.N, layer.G * shape.H},
                                     {s.dgates.stride(0), s.dgates.stride(1), 1}, first_column);
  StepProduct recurrent(layer, recurrent_part, buffers.w_hh, dh);
  std::optional<StepProduct> project;
  if (projected) project.emplace(layer, *s.dh_y, *buffers.w_hr, dm);

  BackwardStep step;
  step.table = table;
  step.gates = s.gates.data_ptr();
  step.cells = s.cells.data_ptr();
  step.c0 = data(s.c0);
  step.y = s.y.data_ptr();
  step.h0 = s.h0.data_ptr();
  step.grad_y = projected ? nullptr : data(s.grad_y);
  step.dh = dm.data_ptr();
  step.dh_is_whole = projected;
  step.direct = projected ? nullptr : data(buffers.direct);
  step.grad_cells = data(s.grad_cells);
  step.dc = data(buffers.dc);
  step.dgates = s.dgates.data_ptr();
  step.m = data(s.m);

  // The stages of a step in reverse: the output's half of the state; the unit's half, cell and gates; product.
  for (int64_t t = shape.T - 1; t >= 0; --t) {
    step.rows = layer.rows_at(t);
    step.previous = layer.rows_at(t - 1);
    if (projected) {
      check_cuda(sum_output_gradient(layer.step_shape(), step.rows, step.table, shape.P, data(s.grad_y),
                                     dh.data_ptr(), data(buffers.direct), s.dh_y->data_ptr(), lane.stream));
      (*project)(step.rows, lane);
    }
    check_cuda(backward_step(layer.step_shape(), step, lane.stream));
    if (t > 0 || s.dh0) recurrent(step.rows, lane);
  }
}

void end(const Layer& layer, const BackwardSequence& to, const BackwardBuffers& buffers) {
  if (to.dh0) store_gradient(layer, *to.dh0, buffers.dh, buffers.direct);
  if (to.dc0) store_gradient(layer, *to.dc0, *buffers.dc, std::nullopt);
}

void run_stepwise(const Layer& layer, const BackwardSequence& s) {
  const BackwardBuffers buffers = make_buffers(layer, s, /*own_weights=*/false);
  begin(layer, s, buffers);
  loop(layer, s, buffers, layer.table(), {layer.stream});
  end(layer, s, buffers);
}

}  // namespace fastrnn::cuda
