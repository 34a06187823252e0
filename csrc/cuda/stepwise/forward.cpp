// The stepwise tier's time loop of the forward pass: a GEMM and a pointwise kernel a step, with a projection one more
// of each.
#include "cuda/stepwise/loop.h"

namespace fastrnn::cuda {

ForwardBuffers make_buffers(const Layer& layer, const ForwardSequence& s, bool own_weights) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, G = layer.G, width = shape.out_size();
  const CellFacts& cell = facts_of(shape.cell);
  const bool projected = shape.P > 0;
  const bool converts = layer.compute != layer.type;
  const auto own = [&](const Sizes& sizes) { return layer.make(sizes); };

  ForwardBuffers out;
  out.w_hh = own_weights ? own({D, G * H, width}) : layer.stacked_w_hh();
  if (projected) out.w_hr = own_weights ? own({D, width, H}) : layer.stacked_w_hr();
  if (shape.bias) {
    out.bias = own_weights ? layer.make_compute({D, layer.recurrent_gates * H}) : *layer.combined_bias();
  }
  out.c = cell.has_cell && converts ? layer.make_compute({D, B, H}) : s.cn;
  out.rec = layer.make_compute({D, B, G * H});
  out.m = projected ? layer.make({D, B, H}) : s.hn;
  // What goes from the old h into the new one past the product does so in full precision, not as rounded for that.
  out.h_state = cell.split && converts ? layer.make_compute({D, B, H}) : s.hn;
  // Not into hn itself: a product writes all rows, and some may have ended.
  if (projected) out.h = layer.make({D, B, shape.P});
  return out;
}

void fill_weights(const Layer& layer, const ForwardBuffers& buffers) {
  layer.stack_w_hh(buffers.w_hh);
  if (buffers.w_hr) layer.stack_w_hr(*buffers.w_hr);
  if (buffers.bias) layer.combine_biases(*buffers.bias);
}

void begin(const Layer& layer, const ForwardSequence& from, const ForwardSequence& s, const ForwardBuffers& buffers) {
  const CellFacts& cell = facts_of(layer.shape().cell);
  copy(s.hn, from.h0);
  if (cell.has_cell) copy(buffers.c, *from.c0);
  if (cell.split && layer.compute != layer.type) copy(buffers.h_state, from.h0);
}

// hn and c hold every row's state while the loop runs. A row that has ended, or has not begun, is not touched, so
// that in the end each row's last state is there, whatever the direction.
void loop(const Layer& layer, const ForwardSequence& s, const ForwardBuffers& buffers, const RowTable& table,
          const Lane& lane) {
  const LayerShape& shape = layer.shape();
  const CellFacts& cell = facts_of(shape.cell);
  const bool projected = shape.P > 0;
  StepProduct recurrent(layer, s.hn, transposed_each(buffers.w_hh), buffers.rec);
  std::optional<StepProduct> project;
  if (projected) project.emplace(layer, buffers.m, transposed_each(*buffers.w_hr), *buffers.h);

  ForwardStep step;
  step.table = table;
  step.gx = s.gx.data_ptr();
  step.gx_stride = s.gx.size(2);
  step.rec = buffers.rec.data_ptr();
  step.bias = data(buffers.bias);
  if (cell.split) step.h_state = buffers.h_state.data_ptr();
  if (cell.has_cell) step.c = buffers.c.data_ptr();
  step.h = buffers.m.data_ptr();
  if (!projected) step.y = s.y.data_ptr();
  if (s.save_gates) step.gates = s.gates.data_ptr();
  if (s.save_cells) step.cells = s.cells.data_ptr();

  // The stages of a step (cells/cell.h): product; gates, cell and the unit's half of the state; the output's half.
  for (int64_t t = 0; t < shape.T; ++t) {
    step.rows = layer.rows_at(t);
    const StepRows state = step.rows.of_states();
    recurrent(state, lane);
    check_cuda(forward_step(layer.step_shape(), step, lane.stream));
    if (projected) {
      (*project)(state, lane);
      check_cuda(store_output(layer.step_shape(), step.rows, step.table, shape.P, buffers.h->data_ptr(), step.h_state,
                              s.y.data_ptr(), s.hn.data_ptr(), lane.stream));
    }
  }
}

void end(const Layer& layer, const ForwardSequence& s, const ForwardBuffers& buffers) {
  if (facts_of(layer.shape().cell).has_cell && layer.compute != layer.type) copy(s.cn, buffers.c);
}

void run_stepwise(const Layer& layer, const ForwardSequence& s) {
  const ForwardBuffers buffers = make_buffers(layer, s, /*own_weights=*/false);
  begin(layer, s, s, buffers);
  loop(layer, s, buffers, layer.table(), {layer.stream});
  end(layer, s, buffers);
}

}  // namespace fastrnn::cuda
