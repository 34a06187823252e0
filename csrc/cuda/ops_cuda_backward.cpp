// Backward pass of a layer in the stepwise tier: through time a pointwise kernel and a GEMM a step, then
// the gradients of x and of every weight as one large GEMM each.
#include "ops_cuda.h"

namespace fastrnn::cuda {
namespace {

// h_prev of every row as one (D,N,Hout) operand: each direction's output, a step later in its own time,
// and h0 where a row starts. A shift by a whole step is a shift by as many rows as long as the number of
// rows does not change, so there are three copies for each run of equal batch sizes, not for each step.
Tensor previous_states(const Layer& layer, const Tensor& y_any, const Tensor& h0) {
  const LayerShape& shape = layer.shape();
  const int64_t width = shape.out_size(), D = shape.D, N = layer.N;
  const Tensor y = view(y_any, {N, D * width}, {D * width, 1});
  const Tensor out = layer.make({D, N, width});
  for (int d = 0; d < D; ++d) {
    const Tensor from = columns(y, d * width, width), to = slice(out, d), start = slice(h0, d);
    const auto move = [&](int64_t to_row, const Tensor& source, int64_t source_row, int64_t count) {
      if (count > 0) copy(rows(to, to_row, count), rows(source, source_row, count));
    };
    for (int64_t t = 0, end; t < shape.T; t = end) {
      const int64_t n = shape.active(t);
      for (end = t + 1; end < shape.T && shape.active(end) == n;) ++end;
      const int64_t first = shape.row_offset(t), last = shape.row_offset(end - 1);
      if (d == 0) {
        if (t == 0) {
          move(first, start, 0, n);
        } else {
          move(first, from, shape.row_offset(t - 1), n);
        }
        move(first + n, from, first, last - first);
      } else {
        const int64_t after = shape.active(end);  // rows that came from a later step; the others start here
        move(first, from, first + n, last - first);
        move(last, from, shape.row_offset(end), after);
        move(last + after, start, after, n - after);
      }
    }
  }
  return out;
}

// The gates that forward did not save: one product over all rows for x, one for h_prev, one kernel.
Tensor recompute_gates(const Layer& layer, const Tensor& h_prev) {
  const int64_t H = layer.shape().H, G = layer.G, D = layer.shape().D;
  const Tensor gates = layer.make({D, layer.N, layer.saved * H});
  for (int d = 0; d < D; ++d) {
    const Tensor out = slice(gates, d), h = slice(h_prev, d);
    multiply(columns(out, 0, G * H), layer.x(), transposed(layer.w_ih(d)));
    if (layer.is(CellKind::kLstm)) {
      multiply_add(out, h, transposed(layer.w_hh(d)));
    } else {  // GRU: n's two parts stay apart
      multiply_add(columns(out, 0, 2 * H), h, transposed(rows(layer.w_hh(d), 0, 2 * H)));
      multiply(columns(out, 3 * H, H), h, transposed(rows(layer.w_hh(d), 2 * H, H)));
    }
  }
  const std::optional<Tensor> bias = layer.combined_bias();
  check_cuda(activate_gates(layer.step_shape(), gates.data_ptr(), data(bias), layer.stream));
  return gates;
}

// dst (G*H,.) = src, whose blocks of H rows are in the order n, r, z; or the other way round.
void from_nrz(const Tensor& dst, const Tensor& src, int64_t H) {
  copy(rows(dst, 0, 2 * H), rows(src, H, 2 * H));
  copy(rows(dst, 2 * H, H), rows(src, 0, H));
}
void to_nrz(const Tensor& dst, const Tensor& src, int64_t H) {
  copy(rows(dst, H, 2 * H), rows(src, 0, 2 * H));
  copy(rows(dst, 0, H), rows(src, 2 * H, H));
}

Tensor as_column(const Tensor& v) { return view(v, {v.size(0), 1}, {v.stride(0), 1}); }

// What the loop leaves for the products after it.
struct Gradients {
  Tensor gates;                // (D,N,Gr*H), order as in BackwardStep
  std::optional<Tensor> dh_y;  // (D,N,P): of every step's projected h
  std::optional<Tensor> m;     // (D,N,H): every step's h before the projection

  // The part of gates that belongs to the input, and to the recurrence.
  Tensor of_input(const Layer& layer, int d) const { return columns(slice(gates, d), 0, layer.G * layer.shape().H); }
  Tensor of_recurrence(const Layer& layer, int d) const {
    const int64_t H = layer.shape().H;
    return columns(slice(gates, d), (layer.recurrent_gates - layer.G) * H, layer.G * H);
  }
};

Tensor input_gradient(const Layer& layer, const Gradients& grads) {
  const LayerShape& shape = layer.shape();
  const Tensor out = layer.make(shape.batch_sizes ? Sizes{layer.N, shape.I} : Sizes{shape.T, shape.B, shape.I});
  const Tensor flat = view(out, {layer.N, shape.I}, {shape.I, 1});
  for (int d = 0; d < shape.D; ++d) {
    Tensor weight = layer.w_ih(d);
    if (layer.is(CellKind::kGru)) {
      weight = layer.make({layer.G * shape.H, shape.I});
      to_nrz(weight, layer.w_ih(d), shape.H);
    }
    (d == 0 ? multiply : multiply_add)(flat, grads.of_input(layer, d), weight);
  }
  return out;
}

// In the order of the weights.
std::vector<Tensor> weight_gradients(const Layer& layer, const Gradients& grads, const Tensor& h_prev) {
  const LayerShape& shape = layer.shape();
  const int64_t H = shape.H, GH = layer.G * H;
  const bool gru = layer.is(CellKind::kGru);
  std::vector<Tensor> out;
  for (int d = 0; d < shape.D; ++d) {
    const Tensor w_ih = layer.make({GH, shape.I}), w_hh = layer.make({GH, shape.out_size()});
    if (gru) {
      const Tensor nrz = layer.make({GH, shape.I});
      multiply(nrz, transposed(grads.of_input(layer, d)), layer.x());
      from_nrz(w_ih, nrz, H);
    } else {
      multiply(w_ih, transposed(grads.of_input(layer, d)), layer.x());
    }
    multiply(w_hh, transposed(grads.of_recurrence(layer, d)), slice(h_prev, d));
    out.push_back(w_ih);
    out.push_back(w_hh);
    if (shape.bias) {
      const Tensor b_ih = layer.make({GH}), b_hh = layer.make({GH});
      const Tensor sums = layer.make({layer.recurrent_gates * H});
      sum_rows(sums, slice(grads.gates, d));
      if (gru) {
        from_nrz(as_column(b_ih), as_column(sums), H);
      } else {
        copy(b_ih, sums);
      }
      copy(b_hh, view(sums, {GH}, {1}, (layer.recurrent_gates - layer.G) * H));
      out.push_back(b_ih);
      out.push_back(b_hh);
    }
    if (shape.P) {
      const Tensor w_hr = layer.make({shape.P, H});
      multiply(w_hr, transposed(slice(*grads.dh_y, d)), slice(*grads.m, d));
      out.push_back(w_hr);
    }
  }
  return out;
}

// A (D,B,.) gradient of the compute type, or zeros.
Tensor initial_gradient(const Layer& layer, const std::optional<Tensor>& grad, const Sizes& sizes) {
  if (!grad) return layer.make_zeros(sizes, layer.compute);
  const Tensor out = layer.make_compute(sizes);
  copy(out, *grad);
  return out;
}

// A (D,B,.) gradient a + b of the compute type as a result.
Tensor result(const Layer& layer, const Tensor& a, const std::optional<Tensor>& b) {
  if (!b && layer.compute == layer.type) return a;
  const Tensor out = layer.make({a.size(0), a.size(1), a.size(2)});
  check_cuda(sum_to_layer_type(layer.shape().dtype, a.numel(), a.data_ptr(), data(b), out.data_ptr(), layer.stream));
  return out;
}

}  // namespace

// dh, dc and direct hold every row's gradient while the loop runs, as hn and c do in forward: a row of a
// packed sequence waits in them with the gradient of its last state until its last step is reached.
Backward backward(const Layer& layer, const BackwardInputs& in) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, N = layer.N, width = shape.out_size();
  const bool lstm = layer.is(CellKind::kLstm), gru = layer.is(CellKind::kGru), projected = shape.P > 0;
  const bool need_x = in.needs & kGradX, need_h0 = in.needs & kGradH0, need_c0 = lstm && (in.needs & kGradC0);
  const bool need_weights = in.needs & kGradWeights;
  const bool recompute = layer.saved && in.gates.dim() == 1;
  const Tensor none = layer.make({0});

  const Tensor h0 = as_contiguous(in.h0);
  const std::optional<Tensor> c0 = lstm ? std::optional(as_contiguous(*in.c0)) : std::nullopt;
  const std::optional<Tensor> grad_y = in.grad_y ? std::optional(as_contiguous(*in.grad_y)) : std::nullopt;
  const Tensor h_prev = recompute || need_weights ? previous_states(layer, in.y, h0) : none;
  const Tensor gates = recompute ? recompute_gates(layer, h_prev) : in.gates;

  const Tensor dh = initial_gradient(layer, in.grad_hn, {D, B, width});
  const std::optional<Tensor> dc =
      lstm ? std::optional(initial_gradient(layer, in.grad_cn, {D, B, H})) : std::nullopt;
  const std::optional<Tensor> direct = gru ? std::optional(layer.make_zeros({D, B, H}, layer.compute)) : std::nullopt;
  // Recomputed gates are ours to overwrite, and just as large.
  Gradients grads{recompute ? gates : layer.make({D, N, layer.recurrent_gates * H}), std::nullopt, std::nullopt};
  Tensor dm = dh;  // gradient of h before the projection
  if (projected) {
    dm = layer.make_compute({D, B, H});
    grads.dh_y = layer.make({D, N, width});
    if (need_weights) grads.m = layer.make({D, N, H});
  }

  const int64_t first_column = (layer.recurrent_gates - layer.G) * H;
  const Tensor recurrent_part =
      view(grads.gates, {D, N, layer.G * H}, {grads.gates.stride(0), grads.gates.stride(1), 1}, first_column);
  StepProduct recurrent(recurrent_part, layer.stacked_w_hh(), dh);
  std::optional<StepProduct> project;
  if (projected) project.emplace(*grads.dh_y, layer.stacked_w_hr(), dm);

  BackwardStep step;
  step.gates = gates.data_ptr();
  step.cells = in.cells.data_ptr();
  step.c0 = data(c0);
  step.y = in.y.data_ptr();
  step.h0 = h0.data_ptr();
  step.grad_y = projected ? nullptr : data(grad_y);
  step.dh = dm.data_ptr();
  step.direct = data(direct);
  step.dc = data(dc);
  step.dgates = grads.gates.data_ptr();
  step.m = data(grads.m);

  for (int64_t s = shape.T - 1; s >= 0 && B > 0; --s) {
    step.rows = layer.rows_at(s);
    step.previous = layer.rows_at(s - 1);
    if (projected) {
      check_cuda(sum_output_gradient(layer.step_shape(), step.rows, shape.P, data(grad_y), dh.data_ptr(),
                                     grads.dh_y->data_ptr(), layer.stream));
      (*project)(step.rows);
    }
    check_cuda(backward_step(layer.step_shape(), step, layer.stream));
    if (s > 0 || need_h0) recurrent(step.rows);
  }

  return {need_x ? input_gradient(layer, grads) : none, need_h0 ? result(layer, dh, direct) : none,
          need_c0 ? result(layer, *dc, std::nullopt) : none,
          need_weights ? weight_gradients(layer, grads, h_prev) : std::vector<Tensor>{}};
}

}  // namespace fastrnn::cuda
