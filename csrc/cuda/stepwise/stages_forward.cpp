// The forward pass of a layer with stages: x's product, then a GEMM and a kernel a step; one more of each with a
// projection, or where the reset gate stands before the product.
#include "cuda/stepwise/product.h"
#include "cuda/stepwise/stages_loop.h"

namespace fastrnn::cuda {

// Rows as in run_stepwise(): hn, h_state, the operand and c hold every row's state while the loop runs.
void forward_stages(const Layer& layer, const RnnArguments& in, const RnnResults& results) {
  const LayerShape& shape = layer.shape();
  const Variant& on = shape.variant;
  const int64_t B = shape.B, H = shape.H, D = shape.D, N = layer.N, G = layer.G, width = shape.out_size();
  const CellFacts& cell = facts_of(shape.cell);
  const bool projected = shape.P > 0, converts = layer.compute != layer.type;
  const std::optional<Tensor> none;
  const auto where = [&](bool is_wanted, const auto& make) { return is_wanted ? std::optional(make()) : none; };
  const StagedLayer staged(layer);

  // x's part lies where the cell's own values will, or with a norm, which keeps it, where that is kept.
  const int64_t gx_column = results.save_gates && on.norm ? (layer.saved - 2 * G) * H : 0;
  const Tensor room = results.save_gates ? results.gates : layer.make({D, N, G * H});
  const Tensor gx = view(room, {D, N, G * H}, {room.stride(0), room.stride(1), 1}, gx_column);
  for (int d = 0; d < D; ++d) multiply(slice(gx, d), layer.x(), transposed(layer.w_ih(d)), layer.tf32);
  layer.clear_padding(results.y, 1);
  if (results.save_gates) layer.clear_padding(results.gates, D);
  if (results.save_cells) layer.clear_padding(results.cells, D);

  const Tensor& hn = results.hn;
  copy(hn, in.h0);
  const auto copy_of = [&](const Tensor& from, ScalarType type) {
    const Tensor out = empty({from.size(0), from.size(1), from.size(2)}, type, layer.device);
    copy(out, from);
    return out;
  };
  const Tensor c = cell.has_cell && converts ? copy_of(*in.c0, layer.compute) : results.cn;
  if (cell.has_cell && !converts) copy(c, *in.c0);
  const Tensor h_state = converts ? copy_of(in.h0, layer.compute) : hn;
  const Tensor operand = on.recurrent_mask ? copy_of(in.h0, layer.type) : hn;
  if (on.recurrent_mask) check_cuda(stages_mask(*staged, false, operand.data_ptr(), layer.stream));

  const HeadWeights weights(layer);
  const int64_t gates = on.reset_before ? G - 1 : G;
  const Tensor rec = layer.make_compute(weights.by_heads(B, gates));
  StageProduct recurrent(layer, weights.of_rows(operand), weights.forward(0, gates), rec);
  const auto reset_h = where(on.reset_before, [&] { return layer.make({D, B, H}); });
  const auto rec_n = where(on.reset_before, [&] { return layer.make_compute(weights.by_heads(B, 1)); });
  std::optional<StageProduct> second;
  if (on.reset_before) second.emplace(layer, weights.of_rows(*reset_h), weights.forward(G - 1, 1), *rec_n);
  const auto m = where(projected, [&] { return layer.make({D, B, H}); });
  const auto h = where(projected, [&] { return layer.make({D, B, width}); });
  std::optional<StepProduct> project;
  if (projected) project.emplace(layer, *m, transposed_each(layer.stacked_w_hr()), *h);
  const Tensor held = layer.make_compute({D, B, 2 * H});
  const auto x_moments = where(on.norm, [&] { return layer.make_compute({D, N, 2}); });
  const std::optional<Tensor> bias = layer.combined_bias();

  StageForward step;
  step.gx = gx.data_ptr();
  step.gx_stride = gx.stride(1);
  step.rec = rec.data_ptr();
  step.rec_n = data(rec_n);
  step.x_moments = data(x_moments);
  step.bias = data(bias);
  if (cell.has_cell) step.c = c.data_ptr();
  step.held = held.data_ptr();
  step.reset_h = data(reset_h);
  step.m = data(m);
  step.h_state = h_state.data_ptr();
  step.hn = hn.data_ptr();
  step.operand = operand.data_ptr();
  step.y = results.y.data_ptr();
  if (results.save_gates) step.gates = results.gates.data_ptr();
  if (results.save_cells) step.cells = results.cells.data_ptr();
  if (on.norm) check_cuda(stages_input_moments(*staged, step, x_moments->data_ptr(), layer.stream));

  for (int64_t t = 0; t < shape.T; ++t) {
    step.rows = layer.rows_at(t);
    const StepRows state = step.rows.of_states();
    recurrent(state);
    check_cuda(stages_forward(*staged, step, layer.stream));
    if (second) {
      (*second)(state);
      check_cuda(stages_second_phase(*staged, step, layer.stream));
    }
    if (projected) {
      (*project)(state, {layer.stream});
      check_cuda(stages_output(*staged, step, h->data_ptr(), layer.stream));
    }
  }
  if (cell.has_cell && converts) copy(results.cn, c);
}

}  // namespace fastrnn::cuda
