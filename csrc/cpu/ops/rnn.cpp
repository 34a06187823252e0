// The recurrent layers on the CPU: plain parameter structs of tensors to the kernels. What the operators check and
// return is in ops/rnn_call.h.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/isa/choose.h"
#include "cpu/ops/observers.h"
#include "cpu/ops/padding.h"
#include "cpu/ops/tensors.h"
#include "cpu/ops/this_machine.h"
#include "ops/rnn_call.h"
#include "params/layer_call.h"

namespace fastrnn {
namespace {

// ---- running kernels ----------------------------------------------------------------------------

// The plan of this thread's last call with a step to compute: what fastrnn.explain foretold, for those who check.
thread_local CpuPlan last_plan;

const CpuPlan& plan_for(const LayerShape& shape, const KernelTable& kernels) {
  return last_plan = plan_cpu(shape, this_machine(kernels, shape.dtype));
}

auto cpu_last_plan() {
  const CpuPlan& plan = last_plan;
  return std::make_tuple(plan.direct, int64_t{plan.direction_groups}, int64_t{plan.batch_groups},
                         int64_t{plan.unit_groups}, plan.forward_chunk, plan.backward_chunk);
}

template <class Params>
void run(const Params& params, size_t bytes, void (*kernel)(const Params&, const CpuPlan&, char*, const Parallel&),
         const CpuPlan& plan) {
  const Scratch scratch(bytes);
  kernel(params, plan, scratch.data(), plan.groups() == 1 ? kOneThread : kTorchThreads);
}

// In training the forward pass takes as much as the backward pass will need, if that is not much more: else a piece
// of memory would be kept for each of them. For a GRU of 35,20,650 those were 12 and 14 MB, a quarter of its step's
// peak.
size_t forward_bytes(const ForwardParams& params, const KernelTable& kernels, const CpuPlan& plan) {
  const size_t bytes = kernels.forward_workspace(params, plan);
  if (params.save == Save::kNothing || bytes < kMappedBytes) return bytes;
  BackwardParams backward;
  backward.shape = params.shape;
  backward.gates = params.gates;
  backward.grad_x[0] = backward.grad_x[1] = params.y;
  backward.need_weights = true;
  const size_t later = kernels.backward_workspace(backward, plan);
  return later <= std::min(kKeptBytes, 2 * bytes) ? std::max(bytes, later) : bytes;
}

void forward(ForwardParams& params) {
  thread_local bool back = false;
  const KernelTable& kernels = kernels_in_use();
  const CpuPlan& plan = plan_for(params.shape, kernels);
  if (params.shape.T == 1) params.back = back = !back;  // see Forward::only_step
  run(params, forward_bytes(params, kernels, plan), kernels.forward, plan);
}

void backward(const BackwardParams& params) {
  const KernelTable& kernels = kernels_in_use();
  const CpuPlan& plan = plan_for(params.shape, kernels);
  run(params, kernels.backward_workspace(params, plan), kernels.backward, plan);
}

// ---- without the dispatcher ---------------------------------------------------------------------

// The results were made by torch's own functions.
void keep_memory_of(int64_t elements, Dtype dtype) {
  keep_freed_memory(static_cast<size_t>(elements) * size_of(dtype));
}

bool forward_call(const ForwardParams& params) noexcept {
  try {
    const LayerShape& s = params.shape;
    keep_memory_of(s.rows() * s.D * s.H * std::max(saved_of(s), 1), s.dtype);
    ForwardParams own = params;
    forward(own);
    return true;
  } catch (...) {
    return false;
  }
}

bool backward_call(const BackwardParams& params) noexcept {
  try {
    const LayerShape& s = params.shape;
    keep_memory_of(gates_of(s.cell) * s.H * std::max(s.I, s.H), s.dtype);
    backward(params);
    return true;
  } catch (...) {
    return false;
  }
}

int64_t cpu_layer_entry() {
  static const LayerEntry entry{kLayerEntryBytes, forward_call, backward_call, observed()};
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(&entry));
}

// ---- the device's half of the operators ---------------------------------------------------------

// What both passes read, contiguous and kept alive for the length of a call.
class Inputs {
 public:
  explicit Inputs(const RnnArguments& in, const CheckedLayer& checked)
      : x(with_contiguous_rows(in.x)), h0(as_contiguous(in.h0)), c0(in.c0 ? as_contiguous(*in.c0) : h0) {
    weights_.reserve(in.weights.size());
    // The masks of rows come last but for that of h, and may be broadcast over steps and rows.
    const Variant& v = checked.shape.variant;
    const size_t first_mask = in.weights.size() - variant_masks(v), last_mask = in.weights.size() - v.recurrent_mask;
    for (size_t i = 0; i < in.weights.size(); ++i) {
      const bool of_rows = i >= first_mask && i < last_mask;
      weights_.push_back(of_rows ? with_contiguous_rows(in.weights[i]) : as_contiguous(in.weights[i]));
    }
    a_direction_ = checked.weights_a_direction;
  }

  template <class Params>
  void set(Params& params) const {
    const LayerShape& s = params.shape;
    params.x = rows_of(x);
    params.h0 = h0.data_ptr();
    if (facts_of(s.cell).has_cell) params.c0 = c0.data_ptr();
    for (int d = 0; d < s.D; ++d) point_at(params.weights[d], weights_.data() + d * a_direction_, s);
    const Tensor* mask = weights_.data() + weights_.size() - variant_masks(s.variant);
    if (s.variant.zoneout_h) params.masks.keep_h = rows_of(*mask++);
    if (s.variant.zoneout_c) params.masks.keep_c = rows_of(*mask++);
    if (s.variant.recurrent_mask) params.masks.recurrent = mask->data_ptr();
  }

  const Tensor x, h0, c0;

 private:
  std::vector<Tensor> weights_;
  int a_direction_;
};

struct Cpu {
  static constexpr bool kTiers = false;
  using Scope = NoScope;

  template <class Sizes>
  static Tensor make(const Sizes& sizes, ScalarType type, const Tensor&) {
    return empty(sizes, type);
  }
  static Tensor make(std::initializer_list<int64_t> sizes, ScalarType type, const Tensor&) {
    return empty(sizes, type);
  }
  static Tensor make_saved(std::initializer_list<int64_t> sizes, ScalarType type, const Tensor&) {
    return empty_saved(sizes, type);
  }

  static void forward(const RnnArguments& in, const CheckedLayer& checked, int64_t mode, const RnnResults& results) {
    ForwardParams params;
    const LayerShape& s = params.shape = checked.shape;
    if (s.rows() == 0) return;
    const Inputs inputs(in, checked);
    inputs.set(params);
    const bool has_cell = facts_of(s.cell).has_cell;
    params.save = static_cast<Save>(mode);
    params.y = results.y.data_ptr();
    params.hn = results.hn.data_ptr();
    if (has_cell) params.cn = results.cn.data_ptr();
    if (results.save_gates) params.gates = results.gates.data_ptr();
    if (results.save_cells) params.cells = results.cells.data_ptr();
    fastrnn::forward(params);
    if (!s.order) return;
    clear_padding(s, results.y, s.D * s.out_size());
    keep_unused_states(s, inputs.h0, results.hn, s.out_size());
    if (has_cell) keep_unused_states(s, inputs.c0, results.cn, s.H);
    for (int d = 0; d < s.D; ++d) {
      if (results.save_gates) clear_padding(s, torch::stable::select(results.gates, 0, d), saved_of(s) * s.H);
      if (results.save_cells) clear_padding(s, torch::stable::select(results.cells, 0, d), s.H);
    }
  }

  static std::pair<Tensor, std::vector<Tensor>> backward(const RnnArguments& in, const CheckedLayer& checked,
                                                         const SavedArguments& saved, const WantedGradients& wanted,
                                                         int64_t mode, const Tensor& grad_h0, const Tensor& grad_c0) {
    BackwardParams params;
    const LayerShape& s = params.shape = checked.shape;
    const ScalarType type = in.x.scalar_type(), compute = compute_type(s.dtype);
    const bool has_rows = s.rows() > 0, both = wanted.x && s.D == 2;
    const auto like_x = [&](bool is_wanted) {
      return empty(is_wanted ? row_sizes(s, s.I) : std::vector<int64_t>{0}, type);
    };
    const Tensor grad_x = like_x(wanted.x), grad_x_reverse = like_x(both);
    std::vector<Tensor> grad_weights;
    if (wanted.weights) {
      const size_t masks = in.weights.size() - variant_masks(s.variant);  // constants
      for (size_t i = 0; i < in.weights.size(); ++i) {
        const auto sizes = in.weights[i].sizes();
        grad_weights.push_back(
            empty(i < masks ? std::vector<int64_t>(sizes.begin(), sizes.end()) : std::vector<int64_t>{0}, compute));
      }
    }
    if (!has_rows || s.T == 0) {  // not one step
      for (Tensor& grad : grad_weights) torch::stable::zero_(grad);
    }
    if (has_rows && mode) {
      const Inputs inputs(in, checked);
      inputs.set(params);
      params.y = saved.y.data_ptr();
      if (saved_of(s) && saved.gates.dim() != 1) params.gates = saved.gates.data_ptr();
      if (facts_of(s.cell).has_cell) params.cells = saved.cells.data_ptr();
      std::vector<Tensor> held;
      const auto contiguous = [&](const std::optional<Tensor>& grad) -> const void* {
        return grad ? held.emplace_back(as_contiguous(*grad)).data_ptr() : nullptr;
      };
      if (saved.grad_y) params.grad_y = rows_of(held.emplace_back(with_contiguous_rows(*saved.grad_y)));
      params.grad_hn = contiguous(saved.grad_hn);
      params.grad_cn = contiguous(saved.grad_cn);
      params.grad_cells = contiguous(saved.grad_cells);
      if (wanted.x) params.grad_x[0] = grad_x.data_ptr();
      if (both) params.grad_x[1] = grad_x_reverse.data_ptr();
      if (wanted.h0) params.grad_h0 = grad_h0.data_ptr();
      if (wanted.c0) params.grad_c0 = grad_c0.data_ptr();
      params.need_weights = wanted.weights;
      for (int d = 0; d < s.D && wanted.weights; ++d) {
        point_at(params.grad_weights[d], grad_weights.data() + d * checked.weights_a_direction, s);
      }
      fastrnn::backward(params);
      clear_padding(s, grad_x, s.I);
      clear_padding(s, grad_x_reverse, s.I);
    }
    if (compute != type) {
      for (Tensor& grad : grad_weights) grad = torch::stable::to(grad, type);
    }
    return {both ? torch::stable::subtract(grad_x, grad_x_reverse, -1.0) : grad_x, std::move(grad_weights)};
  }
};

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { fastrnn::implement_rnn<fastrnn::Cpu>(m); }

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_last_plan", TORCH_BOX(&fastrnn::cpu_last_plan));
  m.impl("cpu_layer_entry", TORCH_BOX(&fastrnn::cpu_layer_entry));
}
