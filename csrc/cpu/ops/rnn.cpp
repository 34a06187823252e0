// The recurrent layers on the CPU: tensors in, plain parameter structs to the kernels, tensors out. Checks
// arguments and allocates every output.
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/isa/choose.h"
#include "cpu/ops/tensors.h"
#include "cpu/ops/threads.h"
#include "ops/rows_args.h"
#include "ops/unlisted.h"

namespace fastrnn {
namespace {

// ---- arguments --------------------------------------------------------------------------------

// Contiguous weights and states, kept alive for the length of a call.
struct Inputs {
  CheckedLayer checked;
  CheckedRows rows;
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
  DirectionWeights directions[2];
  StageMasks masks;
};

// The masks of a variant stand behind the weights; what is broadcast over steps and rows stays so.
StageMasks masks_of(std::vector<Tensor>& weights, const LayerShape& s) {
  StageMasks masks;
  const Tensor* at = weights.data() + weights.size() - variant_masks(s.variant);
  if (s.variant.zoneout_h) masks.keep_h = rows_of(*at++);
  if (s.variant.zoneout_c) masks.keep_c = rows_of(*at++);
  if (s.variant.recurrent_mask) masks.recurrent = at->data_ptr();
  return masks;
}

void read_inputs(Inputs& in, const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                 const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                 const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset, const std::string& cell,
                 bool bias) {
  check_layer(in.checked, x, h0, c0, weights, batch_sizes, cell, bias);
  check_rows(in.rows, in.checked.shape, x, lengths, reset);
  in.x = with_contiguous_rows(x);
  in.h0 = as_contiguous(h0);
  if (c0) in.c0 = as_contiguous(*c0);
  in.weights.reserve(weights.size());
  // Masks of rows come last but for that of h, and may be broadcast over steps and rows.
  const Variant& v = in.checked.shape.variant;
  const size_t first_mask = weights.size() - variant_masks(v), last_mask = weights.size() - v.recurrent_mask;
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool of_rows = i >= first_mask && i < last_mask;
    in.weights.push_back(of_rows ? with_contiguous_rows(weights[i]) : as_contiguous(weights[i]));
  }
  for (int d = 0; d < in.checked.shape.D; ++d) {
    const Tensor* w = in.weights.data() + d * in.checked.weights_a_direction;
    DirectionWeights& out = in.directions[d];
    out.w_ih = w[0].data_ptr();
    out.w_hh = w[1].data_ptr();
    if (bias) {
      out.b_ih = w[2].data_ptr();
      out.b_hh = w[3].data_ptr();
    }
    if (in.checked.shape.P) out.w_hr = w[bias ? 4 : 2].data_ptr();
    point_at_variant(out, in.checked.shape, w + plain_weights(in.checked.shape));
  }
  in.masks = masks_of(in.weights, in.checked.shape);
}

// ---- running kernels ----------------------------------------------------------------------------

// The plan of this thread's last call with a step to compute: what fastrnn.explain foretold, for those who check.
thread_local CpuPlan last_plan;

const CpuPlan& plan_for(const LayerShape& shape, const KernelTable& kernels) {
  return last_plan = plan_cpu(shape, machine_of(kernels, shape.dtype, usable_threads()));
}

auto cpu_last_plan() {
  const CpuPlan& plan = last_plan;
  return std::make_tuple(plan.direct, int64_t{plan.direction_groups}, int64_t{plan.batch_groups},
                         int64_t{plan.unit_groups}, plan.forward_chunk, plan.backward_chunk);
}

template <class Params>
void run(const Params& params, size_t (*workspace)(const Params&, const CpuPlan&),
         void (*kernel)(const Params&, const CpuPlan&, char*, const Parallel&), const CpuPlan& plan) {
  const Scratch scratch(workspace(params, plan));
  kernel(params, plan, scratch.data(), kTorchThreads);
}

// The rows of a padded (T,B,size) tensor that lie beyond their length: kernels never touch them.
void clear_padding(const LayerShape& s, const Tensor& tensor, int64_t size) {
  if (!s.order || !tensor.numel()) return;
  const size_t bytes = static_cast<size_t>(size) * tensor.element_size();
  char* const data = static_cast<char*>(tensor.data_ptr());
  for (int64_t t = 0; t < s.tensor_steps(); ++t) {
    for (int64_t b = s.active(t); b < s.B; ++b) std::memset(data + s.tensor_row(t, b) * bytes, 0, bytes);
  }
}

// Rows without a single step end in the state in which they began.
void keep_unused_states(const LayerShape& s, const Tensor& from, const Tensor& to, int64_t size) {
  if (!s.order) return;
  const size_t bytes = static_cast<size_t>(size) * to.element_size();
  for (int d = 0; d < s.D; ++d) {
    for (int64_t b = s.active(0); b < s.B; ++b) {
      const size_t at = static_cast<size_t>(d * s.B + s.row_of(b)) * bytes;
      std::memcpy(static_cast<char*>(to.data_ptr()) + at, static_cast<const char*>(from.data_ptr()) + at, bytes);
    }
  }
}

// ---- operators ----------------------------------------------------------------------------------

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

Forward rnn_forward(const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                    const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                    const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset, const std::string& cell,
                    bool bias, int64_t mode) {
  Inputs in;
  read_inputs(in, x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias);
  check(mode >= 0 && mode <= 2, "mode: expected 0, 1 or 2, got ", mode);
  ForwardParams params;
  const LayerShape& s = params.shape = in.checked.shape;
  params.save = static_cast<Save>(mode);
  const ScalarType dtype = x.scalar_type();
  const bool lstm = s.cell == CellKind::kLstm;
  const int64_t N = s.rows(), out = s.out_size();
  const Tensor y = batch_sizes ? empty({N, s.D * out}, dtype) : empty({s.tensor_steps(), s.B, s.D * out}, dtype);
  const Tensor hn = empty({s.D, s.B, out}, dtype);
  const Tensor cn = lstm ? empty({s.D, s.B, s.H}, dtype) : empty({0}, dtype);
  const bool save_gates = mode == 1 && saved_of(s) > 0;
  const Tensor gates = save_gates ? empty({s.D, N, saved_of(s) * s.H}, dtype) : empty({0}, dtype);
  const Tensor cells = lstm && mode ? empty({s.D, N, s.H}, compute_type(s.dtype)) : empty({0}, compute_type(s.dtype));
  if (N > 0) {
    params.x = rows_of(in.x);
    params.h0 = in.h0.data_ptr();
    params.c0 = lstm ? in.c0.data_ptr() : nullptr;
    for (int d = 0; d < s.D; ++d) params.weights[d] = in.directions[d];
    params.masks = in.masks;
    params.y = y.data_ptr();
    params.hn = hn.data_ptr();
    params.cn = lstm ? cn.data_ptr() : nullptr;
    params.gates = save_gates ? gates.data_ptr() : nullptr;
    params.cells = lstm && mode ? cells.data_ptr() : nullptr;
    const KernelTable& kernels = kernels_in_use();
    const bool stages = s.variant.any();
    run(params, stages ? kernels.stages_forward_workspace : kernels.forward_workspace,
        stages ? kernels.stages_forward : kernels.forward, plan_for(s, kernels));
    clear_padding(s, y, s.D * out);
    keep_unused_states(s, in.h0, hn, out);
    if (lstm) {
      keep_unused_states(s, in.c0, cn, s.H);
    }
    for (int d = 0; d < s.D && s.order; ++d) {
      if (save_gates) clear_padding(s, torch::stable::select(gates, 0, d), saved_of(s) * s.H);
      if (lstm && mode) clear_padding(s, torch::stable::select(cells, 0, d), s.H);
    }
  }
  return {y, hn, cn, gates, cells};
}

Backward rnn_backward(const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_hn,
                      const std::optional<Tensor>& grad_cn, const std::optional<Tensor>& grad_cells, const Tensor& x,
                      const Tensor& h0, const std::optional<Tensor>& c0, const std::vector<Tensor>& weights,
                      const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& lengths,
                      const std::optional<Tensor>& reset, const Tensor& y, const Tensor& gates, const Tensor& cells,
                      const std::string& cell, bool bias, int64_t mode) {
  Inputs in;
  read_inputs(in, x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias);
  BackwardParams params;
  const LayerShape& s = params.shape = in.checked.shape;
  check_saved(s, x, grad_y, grad_hn, grad_cn, y, gates, cells);
  if (grad_cells && s.cell == CellKind::kLstm) check_grad_cells(s, *grad_cells, cells);
  check(mode >= 0 && mode <= 15, "mode: expected 0 to 15, got ", mode);
  const ScalarType dtype = x.scalar_type(), compute = compute_type(s.dtype);
  const bool lstm = s.cell == CellKind::kLstm;
  const int64_t N = s.rows();
  const bool need_x = mode & Needs::kX, need_h0 = mode & Needs::kH0, need_c0 = lstm && (mode & Needs::kC0);
  const bool need_weights = mode & Needs::kWeights;

  const std::vector<int64_t> x_shape =
      batch_sizes ? std::vector<int64_t>{N, s.I} : std::vector<int64_t>{s.tensor_steps(), s.B, s.I};
  const Tensor grad_x = need_x ? empty(x_shape, dtype) : empty({0}, dtype);
  const Tensor grad_x_reverse = need_x && s.D == 2 ? empty(x_shape, dtype) : empty({0}, dtype);
  const Tensor grad_h0 = need_h0 ? empty({s.D, s.B, s.out_size()}, dtype) : empty({0}, dtype);
  const Tensor grad_c0 = need_c0 ? empty({s.D, s.B, s.H}, dtype) : empty({0}, dtype);
  std::vector<Tensor> grad_weights;
  if (need_weights) {
    const size_t masks = variant_masks(s.variant);
    for (const Tensor& weight : weights) {
      if (grad_weights.size() + masks >= weights.size()) {  // constants
        grad_weights.push_back(empty({0}, compute));
        continue;
      }
      const auto sizes = weight.sizes();
      grad_weights.push_back(empty(std::vector<int64_t>(sizes.begin(), sizes.end()), compute));
    }
  }
  if (N == 0 || s.T == 0) {  // not one step
    for (Tensor& grad : grad_weights) torch::stable::zero_(grad);
  }
  if (N > 0 && mode) {
    Tensor dy, dhn, dcn, dcells;
    params.x = rows_of(in.x);
    params.h0 = in.h0.data_ptr();
    params.c0 = lstm ? in.c0.data_ptr() : nullptr;
    params.y = y.data_ptr();
    params.masks = in.masks;
    Tensor found = gates;
    if (s.variant.any() && gates.dim() == 1) {  // a variant's steps wait for each other: forward again
      found = std::get<3>(rnn_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias,
                                      static_cast<int64_t>(Save::kGates)));
    }
    params.gates = saved_of(s) && found.dim() != 1 ? found.data_ptr() : nullptr;
    params.cells = lstm ? cells.data_ptr() : nullptr;
    if (grad_y) {
      dy = with_contiguous_rows(*grad_y);
      params.grad_y = rows_of(dy);
    }
    if (grad_hn) {
      dhn = as_contiguous(*grad_hn);
      params.grad_hn = dhn.data_ptr();
    }
    if (grad_cn && lstm) {
      dcn = as_contiguous(*grad_cn);
      params.grad_cn = dcn.data_ptr();
    }
    if (grad_cells && lstm) {
      dcells = as_contiguous(*grad_cells);
      params.grad_cells = dcells.data_ptr();
    }
    if (need_x) {
      params.grad_x[0] = grad_x.data_ptr();
      params.grad_x[1] = grad_x_reverse.data_ptr();
    }
    params.grad_h0 = need_h0 ? grad_h0.data_ptr() : nullptr;
    params.grad_c0 = need_c0 ? grad_c0.data_ptr() : nullptr;
    params.need_weights = need_weights;
    for (int d = 0; d < s.D; ++d) {
      params.weights[d] = in.directions[d];
      if (!need_weights) continue;
      const Tensor* grads = grad_weights.data() + d * in.checked.weights_a_direction;
      WeightGradients& to = params.grad_weights[d];
      to.w_ih = grads[0].data_ptr();
      to.w_hh = grads[1].data_ptr();
      if (bias) {
        to.b_ih = grads[2].data_ptr();
        to.b_hh = grads[3].data_ptr();
      }
      if (s.P) to.w_hr = grads[bias ? 4 : 2].data_ptr();
      point_at_variant(to, s, grads + plain_weights(s));
    }
    const KernelTable& kernels = kernels_in_use();
    const bool stages = s.variant.any();
    run(params, stages ? kernels.stages_backward_workspace : kernels.backward_workspace,
        stages ? kernels.stages_backward : kernels.backward, plan_for(s, kernels));
    clear_padding(s, grad_x, s.I);
    clear_padding(s, grad_x_reverse, s.I);
  }
  if (compute != dtype) {
    for (Tensor& grad : grad_weights) grad = torch::stable::to(grad, dtype);
  }
  const Tensor input_gradient = need_x && s.D == 2 ? torch::stable::subtract(grad_x, grad_x_reverse, -1.0) : grad_x;
  return {input_gradient, grad_h0, grad_c0, grad_weights};
}

// ---- for compilers and tracers --------------------------------------------------------------------

auto rnn_backward_unlisted(const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_hn,
                           const std::optional<Tensor>& grad_cn, const std::optional<Tensor>& grad_cells,
                           const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                           const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                           const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset, const Tensor& y,
                           const Tensor& gates, const Tensor& cells, const std::string& cell, bool bias,
                           int64_t mode) {
  return unlisted(rnn_backward(grad_y, grad_hn, grad_cn, grad_cells, x, h0, c0, weights, batch_sizes, lengths, reset,
                               y, gates, cells, cell, bias, mode),
                  [&] { return empty({0}, x.scalar_type()); });
}

// The modes of a program that may have been traced on a GPU: options that only its kernels have go.
constexpr int64_t kModeOptions = 16;

auto rnn_layer(const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0, const std::vector<Tensor>& weights,
               const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& lengths,
               const std::optional<Tensor>& reset, const std::string& cell, bool bias, bool keep_cells,
               int64_t mode) {
  check(mode >= 0 && mode % kModeOptions <= 2, "mode: expected what to save, 0 to 2, and options, got ", mode);
  const Save save = keep_cells ? Save::kRecompute : Save::kNothing;
  return outputs(
      rnn_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, static_cast<int64_t>(save)));
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  const auto impl = [&](const char* name, auto kernel) {
    m.impl(name, kernel);
    m.impl((std::string(name) + ".script").c_str(), kernel);  // see ops.cpp
  };
  impl("rnn_forward", TORCH_BOX(&fastrnn::rnn_forward));
  impl("rnn_backward", TORCH_BOX(&fastrnn::rnn_backward));
  impl("rnn_backward_unlisted", TORCH_BOX(&fastrnn::rnn_backward_unlisted));
  impl("rnn_layer", TORCH_BOX(&fastrnn::rnn_layer));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_last_plan", TORCH_BOX(&fastrnn::cpu_last_plan));
}
