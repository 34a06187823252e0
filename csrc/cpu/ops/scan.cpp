// The SRU's scan on the CPU: tensors in, plain parameter structs to the kernels, tensors out.
#include <algorithm>
#include <tuple>

#include "cpu/isa/table.h"
#include "cpu/ops/tensors.h"
#include "cpu/ops/threads.h"
#include "ops/scan_args.h"

namespace fastrnn {
namespace {

GateRows gate_rows_of(const Tensor& tensor) {
  const bool padded = tensor.dim() == 4;
  GateRows rows;
  rows.data = tensor.data_ptr();
  rows.step_stride = padded ? tensor.stride(0) : 0;
  rows.row_stride = tensor.stride(padded);
  rows.gate_stride = tensor.stride(padded + 1);
  return rows;
}

// Checked arguments, kept alive for the length of a call.
class Inputs {
 public:
  explicit Inputs(const ScanArguments& arguments, double scale) {
    check_scan(checked_, arguments);
    in.shape = checked_.shape;
    in.scale = scale;
    in.u = gate_rows_of(hold(with_contiguous_rows(arguments.u)));
    if (arguments.x) in.x = rows_of(hold(with_contiguous_rows(*arguments.x)));
    in.weight_c = hold(as_contiguous(arguments.weight_c)).data_ptr();
    in.bias = hold(as_contiguous(arguments.bias)).data_ptr();
    in.c0 = hold(as_contiguous(arguments.c0)).data_ptr();
    if (arguments.v) in.v = gate_rows_of(hold(with_contiguous_rows(*arguments.v)));
    set_flags(arguments.mask_pad, arguments.reset);
    if (arguments.drop_mask) in.drop_mask = hold(as_contiguous(*arguments.drop_mask)).data_ptr();
  }

  const CheckedScan& checked() const { return checked_; }
  const Tensor& hold(Tensor tensor) {
    held_.push_back(std::move(tensor));
    return held_.back();
  }

  ScanInputs in;

 private:
  void set_flags(const std::optional<Tensor>& mask_pad, const std::optional<Tensor>& reset) {
    const auto bytes = [&](const std::optional<Tensor>& mask) {
      return mask ? static_cast<const uint8_t*>(hold(as_contiguous(*mask)).data_ptr()) : nullptr;
    };
    in.flags = bytes(mask_pad);
    if (!reset) return;
    const ScanShape& s = in.shape;
    in.flags_stride = s.L * s.B;
    flags_.resize(s.D * in.flags_stride);
    const uint8_t* const resets = bytes(reset);
    uint8_t* to = flags_.data();
    for (int d = 0; d < s.D; ++d) {
      for (int64_t at = 0; at < in.flags_stride; ++at) *to++ = step_flags(in.flags, resets, s.L, s.B, d, at);
    }
    in.flags = flags_.data();
  }

  std::vector<uint8_t> flags_;
  CheckedScan checked_;
  std::vector<Tensor> held_;
};

std::tuple<Tensor, Tensor, Tensor> sru_forward(const Tensor& u, const std::optional<Tensor>& x,
                                               const Tensor& weight_c, const Tensor& bias, const Tensor& c0,
                                               const std::optional<Tensor>& v, const std::optional<Tensor>& mask_pad,
                                               const std::optional<Tensor>& drop_mask,
                                               const std::optional<Tensor>& batch_sizes,
                                               const std::optional<Tensor>& reset, bool use_tanh, double scale,
                                               bool bidirectional, bool save) {
  Inputs inputs({u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, reset, use_tanh, bidirectional},
                scale);
  const ScanShape& s = inputs.in.shape;
  const ScalarType dtype = u.scalar_type(), compute = compute_type(s.dtype);
  const Tensor h = empty(inputs.checked().sizes({s.O}), dtype);
  const Tensor c = empty({s.B, s.O}, dtype);
  const Tensor cells = save ? empty({s.rows(), s.O}, compute) : empty({0}, compute);
  ScanForwardParams params;
  params.in = inputs.in;
  params.h = h.data_ptr();
  params.c = c.data_ptr();
  params.cells = save ? cells.data_ptr() : nullptr;
  const int64_t a_row = s.O * static_cast<int64_t>(size_of(s.dtype) + save * (s.dtype == Dtype::kDouble ? 8 : 4));
  const ScanKernels& kernels = *kernels_in_use().scan;
  const ScanPlan plan = plan_scan(s, s.rows() * a_row, usable_threads());
  const Scratch scratch(kernels.forward_workspace(params, plan));
  kernels.forward(params, plan, scratch.data(), kTorchThreads);
  return {h, c, cells};
}

// For the programs that tracers write.
std::tuple<Tensor, Tensor, Tensor> sru_scan(const Tensor& u, const std::optional<Tensor>& x, const Tensor& weight_c,
                                            const Tensor& bias, const Tensor& c0, const std::optional<Tensor>& v,
                                            const std::optional<Tensor>& mask_pad,
                                            const std::optional<Tensor>& drop_mask,
                                            const std::optional<Tensor>& batch_sizes,
                                            const std::optional<Tensor>& reset, bool use_tanh, double scale,
                                            bool bidirectional, bool keep_cells) {
  return sru_forward(u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, reset, use_tanh, scale,
                     bidirectional, keep_cells);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> sru_backward(
    const std::optional<Tensor>& grad_h, const std::optional<Tensor>& grad_c, const std::optional<Tensor>& grad_cells,
    const Tensor& u, const std::optional<Tensor>& x, const Tensor& weight_c, const Tensor& bias, const Tensor& c0,
    const std::optional<Tensor>& v, const std::optional<Tensor>& mask_pad, const std::optional<Tensor>& drop_mask,
    const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& reset, const Tensor& cells, bool use_tanh,
    double scale, bool bidirectional, int64_t needs) {
  Inputs inputs({u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, reset, use_tanh, bidirectional},
                scale);
  const CheckedScan& checked = inputs.checked();
  const ScanShape& s = inputs.in.shape;
  check_scan_saved(checked, u, grad_h, grad_c, grad_cells, cells, needs);
  const ScalarType dtype = u.scalar_type();
  const auto made = [&](bool wanted, std::vector<int64_t> sizes) {
    return empty(wanted ? sizes : std::vector<int64_t>{0}, dtype);
  };
  const bool need_weights = needs & ScanNeeds::kWeights;
  const Tensor grad_u = made(needs & ScanNeeds::kU, checked.sizes({s.K, s.O}));
  const Tensor grad_x = made(x && (needs & ScanNeeds::kX), checked.sizes({s.O}));
  const Tensor grad_weight_c = made(need_weights, {2, s.O}), grad_bias = made(need_weights, {2, s.O});
  const Tensor grad_c0 = made(needs & ScanNeeds::kC0, {s.B, s.O});
  const Tensor grad_v = made(v && (needs & ScanNeeds::kV), checked.sizes({2, s.O}));

  ScanBackwardParams params;
  params.in = inputs.in;
  params.cells = cells.data_ptr();
  if (grad_h) params.grad_h = rows_of(inputs.hold(with_contiguous_rows(*grad_h)));
  if (grad_c) params.grad_c = inputs.hold(as_contiguous(*grad_c)).data_ptr();
  if (grad_cells) params.grad_cells = inputs.hold(as_contiguous(*grad_cells)).data_ptr();
  if (needs & ScanNeeds::kU) params.grad_u = grad_u.data_ptr();
  if (x && (needs & ScanNeeds::kX)) params.grad_x = grad_x.data_ptr();
  if (need_weights) {
    params.grad_weight_c = grad_weight_c.data_ptr();
    params.grad_bias = grad_bias.data_ptr();
  }
  if (needs & ScanNeeds::kC0) params.grad_c0 = grad_c0.data_ptr();
  if (v && (needs & ScanNeeds::kV)) params.grad_v = grad_v.data_ptr();
  const ScanKernels& kernels = *kernels_in_use().scan;
  const ScanPlan plan =
      plan_scan(s, s.rows() * (s.K + (params.grad_x != nullptr)) * s.O * size_of(s.dtype), usable_threads());
  const Scratch scratch(kernels.backward_workspace(params, plan));
  kernels.backward(params, plan, scratch.data(), kTorchThreads);
  return {grad_u, grad_x, grad_weight_c, grad_bias, grad_c0, grad_v};
}

std::tuple<Tensor, Tensor> sru_step(Tensor x, Tensor weight, std::optional<Tensor> skip, Tensor weight_c, Tensor bias,
                                    Tensor c0, bool use_tanh, double scale) {
  check(x.dim() == 2, "x: expected shape (B, input_size), got ", shape_of(x));
  check(c0.dim() == 2 && c0.size(1) > 0, "c0: expected shape (B, O) with at least one feature, got ", shape_of(c0));
  const int64_t B = x.size(0), I = x.size(1), O = c0.size(1);
  ScanForwardParams scan;
  ScanShape& s = scan.in.shape;
  s.dtype = parse_dtype(x, "x");
  s.L = 1;
  s.B = B;
  s.O = O;
  s.K = weight.dim() == 2 && weight.size(0) == 4 * O ? 4 : 3;
  s.use_tanh = use_tanh;
  const auto check_like_x = [&](const Tensor& t, const char* name, const ExpectedShape& shape) {
    check_shape(t, name, shape);
    check_same_kind(t, name, x);
  };
  check_like_x(weight, "weight", {O * s.K, I});
  check(!(skip && s.K == 4), "skip: expected none with K = 4 (the weight gives the skip term), got a tensor");
  if (skip) check_like_x(*skip, "skip", {B, O});
  check_like_x(weight_c, "weight_c", {2 * O});
  check_like_x(bias, "bias", {2 * O});
  check_like_x(c0, "c0", {B, O});

  const Tensor h = empty({B, O}, x.scalar_type()), c = empty({B, O}, x.scalar_type());
  if (B == 0) return {h, c};
  const Tensor rows = with_contiguous_rows(x), weights = as_contiguous(weight);
  const Tensor skip_rows = skip ? with_contiguous_rows(*skip) : rows;
  const Tensor gate_weights = as_contiguous(weight_c), gate_bias = as_contiguous(bias), state = as_contiguous(c0);

  GateProductParams product;
  product.dtype = s.dtype;
  product.B = B;
  product.I = I;
  product.O = O;
  product.K = s.K;
  product.x = rows_of(rows);
  product.weight = weights.data_ptr();
  const int threads = gate_product_threads(product, usable_threads());
  const int workers = static_cast<int>(std::min<int64_t>(threads, O));
  scan.in.u.row_stride = s.K * O;
  scan.in.u.gate_stride = O;
  if (skip) scan.in.x = rows_of(skip_rows);
  scan.in.scale = scale;
  scan.in.weight_c = gate_weights.data_ptr();
  scan.in.bias = gate_bias.data_ptr();
  scan.in.c0 = state.data_ptr();
  scan.h = h.data_ptr();
  scan.c = c.data_ptr();
  const KernelTable& kernels = kernels_in_use();
  const ScanPlan plan = plan_scan(s, 0, usable_threads());
  // u lies before the workspace that the two kernels use in turn.
  const size_t u_bytes = (static_cast<size_t>(B * s.K * O) * size_of(s.dtype) + 63) / 64 * 64;
  const Scratch scratch(u_bytes + std::max(kernels.gate_product_workspace(product, workers),
                                           kernels.scan->forward_workspace(scan, plan)));
  product.u = scan.in.u.data = scratch.data();
  kernels.gate_product(product, workers, scratch.data() + u_bytes, kTorchThreads);
  kernels.scan->forward(scan, plan, scratch.data() + u_bytes, kTorchThreads);
  return {h, c};
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("sru_forward", TORCH_BOX(&fastrnn::sru_forward));
  m.impl("sru_scan", TORCH_BOX(&fastrnn::sru_scan));
  m.impl("sru_step", TORCH_BOX(&fastrnn::sru_step));
  m.impl("sru_backward", TORCH_BOX(&fastrnn::sru_backward));
}
