// Backward pass of a layer: the time loop of its tier, then the gradients of x and of every weight as one large GEMM
// each.
#include "cuda/persistent/loop.h"
#include "cuda/stepwise/graphs.h"
#include "cuda/stepwise/kernels.h"
#include "cuda/stepwise/loop.h"
#include "cuda/stepwise/stages_loop.h"

namespace fastrnn::cuda {
namespace {

// h_prev of every row as one (D,N,Hout) operand.
Tensor previous_states(const Layer& layer, const Tensor& y, const Tensor& h0) {
  const int64_t width = layer.shape().out_size();
  const Tensor out = layer.make({layer.shape().D, layer.N, width});
  check_cuda(previous_outputs(layer.step_shape(), layer.table(), width, y.data_ptr(), h0.data_ptr(), out.data_ptr(),
                              layer.stream));
  return out;
}

// The gates that forward did not save: one product over all rows for x, one for h_prev, one kernel.
Tensor recompute_gates(const Layer& layer, const Tensor& h_prev) {
  const int64_t H = layer.shape().H, G = layer.G, D = layer.shape().D;
  const Tensor gates = layer.make({D, layer.N, layer.saved * H});
  for (int d = 0; d < D; ++d) {
    const Tensor out = slice(gates, d), h = slice(h_prev, d);
    multiply(columns(out, 0, G * H), layer.x(), transposed(layer.w_ih(d)), layer.tf32);
    if (layer.is(CellKind::kLstm)) {
      multiply_add(out, h, transposed(layer.w_hh(d)), layer.tf32);
    } else {  // GRU: n's two parts stay apart
      multiply_add(columns(out, 0, 2 * H), h, transposed(rows(layer.w_hh(d), 0, 2 * H)), layer.tf32);
      multiply(columns(out, 3 * H, H), h, transposed(rows(layer.w_hh(d), 2 * H, H)), layer.tf32);
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

// The part of the gates' gradient that belongs to the input, and to the recurrence.
Tensor of_input(const Layer& layer, const Tensor& dgates, int d) {
  return columns(slice(dgates, d), 0, layer.G * layer.shape().H);
}
Tensor of_recurrence(const Layer& layer, const Tensor& dgates, int d) {
  const int64_t H = layer.shape().H;
  return columns(slice(dgates, d), (layer.recurrent_gates - layer.G) * H, layer.G * H);
}

Tensor input_gradient(const Layer& layer, const Tensor& dgates) {
  const LayerShape& shape = layer.shape();
  const Tensor out = layer.make(row_sizes(shape, shape.I));
  const Tensor flat = view(out, {layer.N, shape.I}, {shape.I, 1});
  for (int d = 0; d < shape.D; ++d) {
    Tensor weight = layer.w_ih(d);
    if (layer.is(CellKind::kGru)) {
      weight = layer.make({layer.G * shape.H, shape.I});
      to_nrz(weight, layer.w_ih(d), shape.H);
    }
    (d == 0 ? multiply : multiply_add)(flat, of_input(layer, dgates, d), weight, layer.tf32);
  }
  return out;
}

// In the order of the weights.
std::vector<Tensor> weight_gradients(const Layer& layer, const BackwardSequence& s, const Tensor& h_prev) {
  const LayerShape& shape = layer.shape();
  const Tensor& dgates = s.dgates;
  const int64_t H = shape.H, GH = layer.G * H;
  const bool gru = layer.is(CellKind::kGru);
  const Tensor x = layer.finite_x();
  std::vector<Tensor> out;
  for (int d = 0; d < shape.D; ++d) {
    const Tensor w_ih = layer.make({GH, shape.I}), w_hh = layer.make({GH, shape.out_size()});
    if (gru) {
      const Tensor nrz = layer.make({GH, shape.I});
      multiply(nrz, transposed(of_input(layer, dgates, d)), x, layer.tf32);
      from_nrz(w_ih, nrz, H);
    } else {
      multiply(w_ih, transposed(of_input(layer, dgates, d)), x, layer.tf32);
    }
    multiply(w_hh, transposed(of_recurrence(layer, dgates, d)), slice(h_prev, d), layer.tf32);
    out.push_back(w_ih);
    out.push_back(w_hh);
    if (shape.bias) {
      const Tensor b_ih = layer.make({GH}), b_hh = layer.make({GH});
      const Tensor sums = layer.make({layer.recurrent_gates * H});
      sum_rows(sums, slice(dgates, d));
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
      multiply(w_hr, transposed(slice(*s.dh_y, d)), slice(*s.m, d), layer.tf32);
      out.push_back(w_hr);
    }
  }
  return out;
}

}  // namespace

std::pair<Tensor, std::vector<Tensor>> backward(const Layer& layer, const RnnArguments& in,
                                                const SavedArguments& saved, const WantedGradients& wanted, Tier tier,
                                                const Tensor& grad_h0, const Tensor& grad_c0) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, N = layer.N, width = shape.out_size();
  const bool projected = shape.P > 0;
  const bool recompute = layer.saved && saved.gates.dim() == 1;
  const Tensor none = layer.make({0});
  const CudaPlan plan = plan_pass(layer, Pass::kBackward, tier, true);
  if (shape.variant.any()) {
    if (B > 0) count(Tier::kStepwise, Pass::kBackward);
    return backward_stages(layer, in, saved, wanted, grad_h0, grad_c0);
  }
  const auto contiguous = [](const std::optional<Tensor>& t) {
    return t ? std::optional(as_contiguous(*t)) : std::nullopt;
  };
  const auto where = [](bool is_wanted, const auto& make) {
    return is_wanted ? std::optional(make()) : std::nullopt;
  };

  const Tensor h0 = as_contiguous(in.h0);
  const Tensor h_prev = recompute || wanted.weights ? previous_states(layer, saved.y, h0) : none;
  const Tensor gates = recompute ? recompute_gates(layer, h_prev) : saved.gates;
  const BackwardSequence s{
      .y = saved.y,
      .gates = gates,
      .cells = saved.cells,
      .h0 = h0,
      .c0 = contiguous(in.c0),
      .grad_y = contiguous(saved.grad_y),
      .grad_hn = saved.grad_hn,
      .grad_cn = saved.grad_cn,
      .grad_cells = contiguous(saved.grad_cells),
      // Recomputed gates are ours to overwrite, and just as large.
      .dgates = recompute ? gates : layer.make({D, N, layer.recurrent_gates * H}),
      .dh_y = where(projected, [&] { return layer.make({D, N, width}); }),
      .m = where(projected && wanted.weights, [&] { return layer.make({D, N, H}); }),
      .dh0 = where(wanted.h0, [&] { return grad_h0; }),
      .dc0 = where(wanted.c0, [&] { return grad_c0; }),
  };
  // Beyond the rows' lengths the loops write nothing, and the products read everything.
  layer.clear_padding(s.dgates, D);
  if (s.dh_y) layer.clear_padding(*s.dh_y, D);
  if (s.m) layer.clear_padding(*s.m, D);
  const bool persistent = is_persistent(plan.tier) && shape.T > 0;
  const bool graph = plan.tier == Tier::kStepwiseGraph;
  if (B > 0 && !(persistent && run_persistent(layer, plan, s)) && !(graph && run_graph(layer, plan, s))) {
    run_stepwise(layer, s);
    count(Tier::kStepwise, Pass::kBackward);
  }
  return {wanted.x ? input_gradient(layer, s.dgates) : none,
          wanted.weights ? weight_gradients(layer, s, h_prev) : std::vector<Tensor>{}};
}

}  // namespace fastrnn::cuda
