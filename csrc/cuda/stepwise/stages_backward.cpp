// The backward pass of a layer with stages: a kernel and a GEMM a step, as forward has them, then the gradients of x
// and of every weight.
#include "cuda/stepwise/loop.h"
#include "cuda/stepwise/product.h"
#include "cuda/stepwise/stages_loop.h"

namespace fastrnn::cuda {
namespace {

StageTerms terms_of(const LayerShape& s) {
  StageTerms at;
  const auto take = [&](int groups) {
    const int first = at.count;
    at.count += groups;
    return first;
  };
  const CellFacts& cell = facts_of(s.cell);
  if (s.variant.peephole) at.peephole = take(3);
  if (!s.variant.norm) return at;
  at.norm_ih = take(cell.gates);
  at.norm_hh = take(cell.gates);
  if (cell.has_cell) at.norm_c = take(2);
  if (cell.split) at.bias_n = take(1);
  return at;
}

// What the sums over all rows are made of.
struct RowGradients {
  Tensor dgx, dgh;                   // (D,N,G*H)
  std::optional<Tensor> input_bias;  // (D,G*H), with a norm: the sums of dgx before x's norm
  std::optional<Tensor> terms;       // (D,N,count*H)
  Tensor h;                          // (D,N,Hout): h'
  std::optional<Tensor> reset_h;     // r * h'
  std::optional<Tensor> dh_y, m;
};

// w_hh (G*H,K) of direction d: each head's units by what they multiplied.
void recurrent_gradient(const Layer& layer, const RowGradients& all, int d, const Tensor& out) {
  const LayerShape& shape = layer.shape();
  const int64_t H = shape.H, G = layer.G, heads = shape.variant.heads, size = H / heads;
  const Tensor dgh = slice(all.dgh, d), h = slice(all.h, d);
  const int64_t first = shape.variant.reset_before ? G - 1 : G;
  if (heads == 1) {
    multiply(rows(out, 0, first * H), transposed(columns(dgh, 0, first * H)), h, layer.tf32);
    if (first < G) {
      multiply(rows(out, first * H, H), transposed(columns(dgh, first * H, H)), slice(*all.reset_h, d), layer.tf32);
    }
    return;
  }
  for (int64_t g = 0; g < G; ++g) {
    const Tensor right = g < first ? h : slice(*all.reset_h, d);
    const int64_t N = layer.N;
    multiply(view(out, {heads, size, size}, {size * size, size, 1}, g * H * size),
             view(dgh, {heads, size, N}, {size, 1, dgh.stride(0)}, g * H),
             view(right, {heads, N, size}, {size, right.stride(0), 1}), layer.tf32);
  }
}

// In the order of the weights; nothing for the masks.
std::vector<Tensor> weight_gradients(const Layer& layer, const RowGradients& all, const StageTerms& at) {
  const LayerShape& shape = layer.shape();
  const Variant& on = shape.variant;
  const int64_t H = shape.H, G = layer.G, GH = G * H;
  const CellFacts& cell = facts_of(shape.cell);
  const Tensor x = layer.finite_x();
  std::vector<Tensor> out;
  for (int d = 0; d < shape.D; ++d) {
    const Tensor w_ih = layer.make({GH, shape.I}), w_hh = layer.make({GH, shape.out_size() / on.heads});
    multiply(w_ih, transposed(slice(all.dgx, d)), x, layer.tf32);
    recurrent_gradient(layer, all, d, w_hh);
    out.push_back(w_ih);
    out.push_back(w_hh);
    std::optional<Tensor> sums;
    if (all.terms) {
      sums = layer.make_compute({at.count * H});
      sum_rows(*sums, slice(*all.terms, d));
    }
    const auto of_terms = [&](int first, int64_t groups) { return view(*sums, {groups * H}, {1}, first * H); };
    if (shape.bias) {
      const Tensor b_ih = layer.make({GH}), b_hh = layer.make({GH});
      if (on.norm) {
        copy(b_ih, view(*all.input_bias, {GH}, {1}, d * GH));
        copy(b_hh, b_ih);
        if (cell.split) copy(view(b_hh, {H}, {1}, GH - H), of_terms(at.bias_n, 1));
      } else {
        sum_rows(b_ih, slice(all.dgx, d));
        sum_rows(b_hh, slice(all.dgh, d));
      }
      out.push_back(b_ih);
      out.push_back(b_hh);
    }
    if (shape.P) {
      const Tensor w_hr = layer.make({shape.P, H});
      multiply(w_hr, transposed(slice(*all.dh_y, d)), slice(*all.m, d), layer.tf32);
      out.push_back(w_hr);
    }
    const auto vector = [&](int first, int64_t groups) {
      const Tensor grad = layer.make({groups * H});
      copy(grad, of_terms(first, groups));
      out.push_back(grad);
    };
    if (on.peephole) vector(at.peephole, 3);
    if (!on.norm) continue;
    vector(at.norm_ih, G);
    vector(at.norm_hh, G);
    if (!cell.has_cell) continue;
    vector(at.norm_c, 1);
    vector(at.norm_c + 1, 1);
  }
  for (int i = 0; i < variant_masks(on); ++i) out.push_back(layer.make({0}));
  return out;
}

}  // namespace

// Every row's gradients lie in dh, direct and dc while the loop runs: dh is what a product gave, of h before the
// recurrent mask, and zero before the first; direct begins as that of hn.
std::pair<Tensor, std::vector<Tensor>> backward_stages(const Layer& layer, const RnnArguments& in,
                                                       const SavedArguments& saved, const WantedGradients& wanted,
                                                       const Tensor& grad_h0, const Tensor& grad_c0) {
  const LayerShape& shape = layer.shape();
  const Variant& on = shape.variant;
  const int64_t B = shape.B, H = shape.H, D = shape.D, N = layer.N, G = layer.G, width = shape.out_size();
  const CellFacts& cell = facts_of(shape.cell);
  const bool projected = shape.P > 0;
  const std::optional<Tensor> none;
  const auto where = [&](bool is_wanted, const auto& make) { return is_wanted ? std::optional(make()) : none; };
  const auto contiguous = [&](const std::optional<Tensor>& t) { return t ? std::optional(as_contiguous(*t)) : none; };

  const Tensor h0 = as_contiguous(in.h0);
  const std::optional<Tensor> c0 = contiguous(in.c0), grad_y = contiguous(saved.grad_y),
                              grad_cells = contiguous(saved.grad_cells);
  const StageTerms at = terms_of(shape);
  const bool differ = cell.split || on.norm;  // the recurrent part's gradient, from the input's
  const Tensor dgx = layer.make({D, N, G * H}), dgh = differ ? layer.make({D, N, G * H}) : dgx;
  const bool sums = wanted.weights && at.count > 0;
  const auto terms = where(sums, [&] { return layer.make_compute({D, N, at.count * H}); });
  const auto dh_y = where(projected, [&] { return layer.make({D, N, width}); });
  const auto m = where(projected && wanted.weights, [&] { return layer.make({D, N, H}); });
  // Beyond the rows' lengths the loop writes nothing, and the products read everything.
  for (const std::optional<Tensor>& t : {std::optional(dgx), differ ? std::optional(dgh) : none, terms, dh_y, m}) {
    if (t) layer.clear_padding(*t, D);
  }
  const Tensor empty_result = layer.make({0});
  if (B == 0) {
    RowGradients all{dgx, dgh, none, terms, layer.make({D, N, width}), none, dh_y, m};
    if (on.norm) all.input_bias = layer.make_zeros({D, G * H}, layer.type);
    if (on.reset_before) all.reset_h = all.h;
    return {wanted.x ? layer.make_zeros(row_sizes(shape, shape.I), layer.type) : empty_result,
            wanted.weights ? weight_gradients(layer, all, at) : std::vector<Tensor>{}};
  }

  const StagedLayer staged(layer);
  const Tensor dh = layer.make_zeros({D, B, width}, layer.compute);
  const Tensor direct = final_gradient(layer, saved.grad_hn, {D, B, width});
  const auto dc = where(cell.has_cell, [&] { return final_gradient(layer, saved.grad_cn, {D, B, H}); });
  const auto dm = where(projected, [&] { return layer.make_compute({D, B, H}); });
  const Tensor held = layer.make_compute({D, B, 2 * H});

  const HeadWeights weights(layer);
  const int64_t gates = on.reset_before ? G - 1 : G;
  const Tensor operand = layer.make(weights.by_heads(B, gates));
  StageProduct recurrent(layer, operand, weights.backward(0, gates), weights.of_rows(dh));
  const auto operand_n = where(on.reset_before, [&] { return layer.make(weights.by_heads(B, 1)); });
  const auto d_reset_h = where(on.reset_before, [&] { return layer.make_compute({D, B, H}); });
  std::optional<StageProduct> second;
  if (on.reset_before) {
    second.emplace(layer, *operand_n, weights.backward(G - 1, 1), weights.of_rows(*d_reset_h));
  }
  std::optional<StepProduct> project;
  if (projected) project.emplace(layer, *dh_y, layer.stacked_w_hr(), *dm);

  StageBackward step;
  step.gates = saved.gates.data_ptr();
  step.cells = saved.cells.data_ptr();
  step.c0 = data(c0);
  step.y = saved.y.data_ptr();
  step.h0 = h0.data_ptr();
  step.grad_y = data(grad_y);
  step.grad_cells = data(grad_cells);
  step.dh = dh.data_ptr();
  step.direct = direct.data_ptr();
  step.dm = data(dm);
  step.dh_y = data(dh_y);
  step.dc = data(dc);
  step.held = held.data_ptr();
  step.dgx = dgx.data_ptr();
  step.dgh = dgh.data_ptr();
  step.operand = operand.data_ptr();
  step.operand_n = data(operand_n);
  step.d_reset_h = data(d_reset_h);
  step.m = data(m);
  step.terms = data(terms);
  step.at = at;

  for (int64_t t = shape.T - 1; t >= 0; --t) {
    step.rows = layer.rows_at(t);
    step.previous = layer.rows_at(t - 1);
    const StepRows state = step.rows.of_states();
    if (projected) {
      check_cuda(stages_output_gradient(*staged, step, layer.stream));
      (*project)(step.rows, {layer.stream});
    }
    check_cuda(stages_backward(*staged, step, layer.stream));
    if (second) {
      (*second)(state);
      check_cuda(stages_first_phase_backward(*staged, step, layer.stream));
    }
    if (t > 0 || wanted.h0) recurrent(state);
  }
  if (wanted.h0) {
    if (on.recurrent_mask) check_cuda(stages_mask(*staged, true, dh.data_ptr(), layer.stream));
    store_gradient(layer, grad_h0, dh, direct);
  }
  if (wanted.c0) store_gradient(layer, grad_c0, *dc, none);

  RowGradients all{dgx, dgh, none, terms, empty_result, none, dh_y, m};
  if (on.norm && (wanted.x || wanted.weights)) {
    if (wanted.weights && shape.bias) {
      all.input_bias = layer.make({D, G * H});
      for (int d = 0; d < D; ++d) sum_rows(view(*all.input_bias, {G * H}, {1}, d * G * H), slice(dgx, d));
    }
    check_cuda(stages_input_backward(*staged, step, layer.stream));
  }
  const Tensor grad_x = wanted.x ? layer.make(row_sizes(shape, shape.I)) : empty_result;
  if (wanted.x) {
    const Tensor flat = view(grad_x, {N, shape.I}, {shape.I, 1});
    for (int d = 0; d < D; ++d) (d == 0 ? multiply : multiply_add)(flat, slice(dgx, d), layer.w_ih(d), layer.tf32);
  }
  if (!wanted.weights) return {grad_x, {}};
  all.h = layer.make({D, N, width});
  if (on.reset_before) all.reset_h = layer.make({D, N, width});
  check_cuda(stages_operands(*staged, step, all.h.data_ptr(), data(all.reset_h), layer.stream));
  return {grad_x, weight_gradients(layer, all, at)};
}

}  // namespace fastrnn::cuda
