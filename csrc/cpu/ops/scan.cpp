// The SRU's scan on the CPU: plain parameter structs of tensors to the kernels, and the operator of a single step.
// What the others check and return is in ops/scan_call.h.
#include <algorithm>
#include <tuple>

#include "cpu/isa/table.h"
#include "cpu/ops/tensors.h"
#include "cpu/ops/this_machine.h"
#include "cpu/ops/threads.h"
#include "ops/scan_call.h"

namespace fastrnn {
namespace {

class CpuScan : public ScanCall {
 public:
  using Scope = NoScope;

  CpuScan(const ScanArguments& arguments, double scale) : ScanCall(arguments, scale) {
    if (!resets) return;
    const ScanShape& s = shape();
    in.flags_stride = s.T * s.B;
    flags_.resize(s.D * in.flags_stride);
    uint8_t* to = flags_.data();
    for (int d = 0; d < s.D; ++d) {
      for (int64_t at = 0; at < in.flags_stride; ++at) *to++ = step_flags(in.flags, resets, s.T, s.B, d, at);
    }
    in.flags = flags_.data();
  }

  static Tensor make(const std::vector<int64_t>& sizes, ScalarType type) { return empty(sizes, type); }

  void run(const ScanForwardParams& params) const {
    const ScanShape& s = shape();
    const size_t a_cell = params.cells ? (s.dtype == Dtype::kDouble ? 8 : 4) : 0;
    const int64_t a_row = s.O * static_cast<int64_t>(size_of(s.dtype) + a_cell);
    const ScanKernels& kernels = *kernels_in_use().scan;
    run(params, a_row, kernels.forward_workspace, kernels.forward);
  }
  void run(const ScanBackwardParams& params) const {
    const ScanShape& s = shape();
    const int64_t a_row = (s.K + (params.grad_x != nullptr)) * s.O * static_cast<int64_t>(size_of(s.dtype));
    const ScanKernels& kernels = *kernels_in_use().scan;
    run(params, a_row, kernels.backward_workspace, kernels.backward);
  }

 private:
  // a_row: bytes of the results for each row.
  template <class Params, class Workspace, class Kernel>
  void run(const Params& params, int64_t a_row, Workspace workspace, Kernel kernel) const {
    const ScanPlan plan = plan_scan(shape(), shape().rows() * a_row, usable_threads(), last_cache());
    const Scratch scratch(workspace(params, plan));
    kernel(params, plan, scratch.data(), kTorchThreads);
  }

  std::vector<uint8_t> flags_;
};

std::tuple<Tensor, Tensor> sru_step(Tensor x, Tensor weight, std::optional<Tensor> skip, Tensor weight_c, Tensor bias,
                                    Tensor c0, bool use_tanh, double scale) {
  check(x.dim() == 2, "x: expected shape (B, input_size), got ", shape_of(x));
  check(c0.dim() == 2 && c0.size(1) > 0, "c0: expected shape (B, O) with at least one feature, got ", shape_of(c0));
  const int64_t B = x.size(0), I = x.size(1), O = c0.size(1);
  ScanForwardParams scan;
  ScanShape& s = scan.in.shape;
  s.dtype = parse_dtype(x, "x");
  s.T = 1;
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
  fastrnn::implement_scan<fastrnn::CpuScan>(m);
  m.impl("sru_step", TORCH_BOX(&fastrnn::sru_step));
}
