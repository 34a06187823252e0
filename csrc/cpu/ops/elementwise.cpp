// The recurrences of cells/elementwise.h on the CPU: tensors to the kernels' plain structs.
#include <tuple>

#include "cpu/isa/table.h"
#include "cpu/ops/tensors.h"
#include "cpu/ops/this_machine.h"
#include "cpu/ops/threads.h"
#include "ops/elementwise_args.h"
#include "ops/tensors.h"

namespace fastrnn {
namespace {

using Optional = std::optional<Tensor>;

// A call's checked arguments, and what they point into.
class ElementwiseCall {
 public:
  ElementwiseCall(const std::string& cell, const Tensor& x, const Optional& b, const Optional& weight,
                  const Optional& h0, const Optional& lengths, const Optional& cut, bool reverse)
      : type(x.scalar_type()) {
    check_elementwise(in, cell, x, b, weight, h0, reverse);
    const ScanShape& s = in.scan.shape;
    flags_ = checked_flags(s.T, s.B, lengths, cut, x, "x");
    if (!flags_.empty()) in.scan.flags = flags_.data();
    const TensorRows rows = rows_of(hold(with_contiguous_rows(x)));
    for (int k = 0; k < (b ? 1 : s.K); ++k) in.inputs[k] = block(rows, k);
    if (b) in.inputs[1] = rows_of(hold(with_contiguous_rows(*b)));
    if (weight) in.weight = hold(as_contiguous(*weight)).data_ptr();
    if (h0) in.scan.c0 = hold(as_contiguous(*h0)).data_ptr();
  }
  ElementwiseCall(const ElementwiseCall&) = delete;
  ElementwiseCall& operator=(const ElementwiseCall&) = delete;

  const Tensor& hold(Tensor tensor) {
    held_.push_back(std::move(tensor));
    return held_.back();
  }
  // Features [k H, (k+1) H) of rows.
  TensorRows block(TensorRows rows, int k) const {
    const ScanShape& s = in.scan.shape;
    rows.data = static_cast<char*>(rows.data) + k * s.O * static_cast<int64_t>(size_of(s.dtype));
    return rows;
  }

  // a_row: features of the results for each row.
  template <class Params, class Workspace, class Kernel>
  static void run(const Params& params, int64_t a_row, Workspace workspace, Kernel kernel) {
    const ScanShape& s = params.in.scan.shape;
    const int64_t bytes = s.rows() * a_row * static_cast<int64_t>(size_of(s.dtype));
    const ElementwisePlan plan = plan_elementwise(params.in, bytes, usable_threads(), last_cache());
    const Scratch scratch(workspace(params, plan));
    kernel(params, plan, scratch.data(), kTorchThreads);
  }

  ElementwiseInputs in;
  const ScalarType type;

 private:
  std::vector<uint8_t> flags_;
  std::vector<Tensor> held_;
};

std::tuple<Tensor, Tensor> elementwise_forward(std::string cell, Tensor x, Optional b, Optional weight, Optional h0,
                                               Optional lengths, Optional cut, bool reverse) {
  const ElementwiseCall call(cell, x, b, weight, h0, lengths, cut, reverse);
  const ScanShape& s = call.in.scan.shape;
  const Tensor y = empty({s.T, s.B, s.O}, call.type), last = empty({s.B, s.O}, call.type);
  ElementwiseForwardParams params;
  params.in = call.in;
  params.y = y.data_ptr();
  params.last = last.data_ptr();
  const ScanKernels& kernels = *kernels_in_use().scan;
  ElementwiseCall::run(params, s.O, kernels.elementwise_forward_workspace, kernels.elementwise_forward);
  return {y, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> elementwise_backward(std::string cell, Optional grad_y, Optional grad_last,
                                                                Tensor x, Optional b, Optional weight, Optional h0,
                                                                Optional lengths, Optional cut, Tensor y,
                                                                bool reverse, int64_t needs) {
  ElementwiseCall call(cell, x, b, weight, h0, lengths, cut, reverse);
  const ScanShape& s = call.in.scan.shape;
  const auto check_like_x = [&](const Tensor& t, const char* name, const ExpectedShape& shape) {
    check_shape(t, name, shape);
    check_same_kind(t, name, x);
  };
  check_like_x(y, "y", {s.T, s.B, s.O});
  if (grad_y) check_like_x(*grad_y, "grad_y", {s.T, s.B, s.O});
  if (grad_last) check_like_x(*grad_last, "grad_last", {s.B, s.O});
  check(needs >= 0 && needs <= ElementwiseNeeds::kAll, "needs: expected 0 to ", ElementwiseNeeds::kAll, ", got ",
        needs);

  ElementwiseBackwardParams params;
  params.in = call.in;
  params.y = rows_of(call.hold(with_contiguous_rows(y)));
  if (grad_y) params.grad_y = rows_of(call.hold(with_contiguous_rows(*grad_y)));
  if (grad_last) params.grad_last = call.hold(as_contiguous(*grad_last)).data_ptr();
  const auto gradient = [&](bool wanted, std::vector<int64_t> sizes) {
    return empty(wanted ? sizes : std::vector<int64_t>{0}, call.type);
  };
  const int64_t blocks = b ? 1 : s.K;
  const bool need_x = needs & ElementwiseNeeds::kX, need_b = b && (needs & ElementwiseNeeds::kB);
  const bool need_weight = weight && (needs & ElementwiseNeeds::kWeight),
             need_h0 = h0 && (needs & ElementwiseNeeds::kH0);
  const Tensor grad_x = gradient(need_x, {s.T, s.B, blocks * s.O});
  const Tensor grad_b = gradient(need_b, {s.T, s.B, s.O});
  const Tensor grad_weight = gradient(need_weight, {s.O}), grad_h0 = gradient(need_h0, {s.B, s.O});
  if (need_x) {
    const TensorRows rows = rows_of(grad_x);
    for (int k = 0; k < blocks; ++k) params.grad_inputs[k] = call.block(rows, k);
  }
  if (need_b) params.grad_inputs[1] = rows_of(grad_b);
  if (need_weight) params.grad_weight = grad_weight.data_ptr();
  if (need_h0) params.grad_h0 = grad_h0.data_ptr();
  const ScanKernels& kernels = *kernels_in_use().scan;
  ElementwiseCall::run(params, s.K * s.O, kernels.elementwise_backward_workspace, kernels.elementwise_backward);
  return {grad_x, grad_b, grad_weight, grad_h0};
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("elementwise_forward", TORCH_BOX(&fastrnn::elementwise_forward));
  m.impl("elementwise_backward", TORCH_BOX(&fastrnn::elementwise_backward));
}
