// The sLSTM on the CPU: tensors to the kernels' plain structs.
#include <tuple>

#include "cpu/isa/table.h"
#include "cpu/ops/tensors.h"
#include "cpu/ops/threads.h"
#include "ops/elementwise_args.h"
#include "ops/tensors.h"

namespace fastrnn {
namespace {

using Optional = std::optional<Tensor>;

constexpr size_t kLeastKept = 1 << 20;  // bytes

// A call's checked arguments, and what they point into.
class SlstmCall {
 public:
  SlstmCall(const Tensor& gx, const Tensor& weight_hh, const std::vector<Optional>& states, const Optional& lengths,
            const Optional& cut, bool reverse)
      : type(gx.scalar_type()) {
    in.shape = checked_slstm(gx, weight_hh, states, reverse);
    flags_ = checked_flags(in.shape.T, in.shape.B, lengths, cut, gx, "gx");
    if (!flags_.empty()) in.flags = flags_.data();
    in.w_hh = hold(as_contiguous(weight_hh)).data_ptr();
    for (int i = 0; i < 4; ++i) {
      if (states[i]) in.states[i] = hold(as_contiguous(*states[i])).data_ptr();
    }
  }
  SlstmCall(const SlstmCall&) = delete;
  SlstmCall& operator=(const SlstmCall&) = delete;

  const Tensor& hold(Tensor tensor) {
    held_.push_back(std::move(tensor));
    return held_.back();
  }

  SlstmInputs in;
  const ScalarType type;

 private:
  std::vector<uint8_t> flags_;
  std::vector<Tensor> held_;
};

template <class Params, class Workspace, class Kernel>
void run(const Params& params, Workspace workspace, Kernel kernel) {
  const SlstmPlan plan = plan_slstm(params.in.shape, usable_threads());
  const Scratch scratch(workspace(params, plan));
  kernel(params, plan, scratch.data(), kTorchThreads);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> slstm_forward(Tensor gx, Tensor weight_hh,
                                                                                 Optional h0, Optional c0,
                                                                                 Optional n0, Optional m0,
                                                                                 Optional lengths, Optional cut,
                                                                                 bool reverse, bool save) {
  SlstmCall call(gx, weight_hh, {h0, c0, n0, m0}, lengths, cut, reverse);
  const SlstmShape& s = call.in.shape;
  const Tensor y = empty({s.T, s.B, s.H}, call.type);
  const Tensor last[] = {empty({s.B, s.H}, call.type), empty({s.B, s.H}, call.type), empty({s.B, s.H}, call.type),
                         empty({s.B, s.H}, call.type)};
  const auto kept = [&](int64_t features) {
    return save ? empty_saved({s.T, s.B, features}, compute_type(s.dtype), kLeastKept)
                : empty({0}, compute_type(s.dtype));
  };
  const Tensor pre = kept(4 * s.H), saved = kept(3 * s.H);
  SlstmForwardParams params;
  params.in = call.in;
  params.gx = rows_of(call.hold(with_contiguous_rows(gx)));
  params.y = y.data_ptr();
  for (int i = 0; i < 4; ++i) params.last[i] = last[i].data_ptr();
  if (save) {
    params.pre = pre.data_ptr();
    params.saved = saved.data_ptr();
  }
  const KernelTable& kernels = kernels_in_use();
  run(params, kernels.slstm_forward_workspace, kernels.slstm_forward);
  return {y, last[0], last[1], last[2], last[3], pre, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> slstm_backward(Optional grad_y, Optional grad_h, Optional grad_c,
                                                                  Optional grad_n, Optional grad_m, Tensor gx,
                                                                  Tensor weight_hh, Optional h0, Optional c0,
                                                                  Optional n0, Optional m0, Optional lengths,
                                                                  Optional cut, Tensor pre, Tensor saved,
                                                                  bool reverse) {
  SlstmCall call(gx, weight_hh, {h0, c0, n0, m0}, lengths, cut, reverse);
  const SlstmShape& s = call.in.shape;
  const auto check_saved = [&](const Tensor& t, const char* name, int64_t features) {
    check_shape(t, name, {s.T, s.B, features});
    check(t.scalar_type() == compute_type(s.dtype) && t.is_contiguous() && t.device() == gx.device(), name,
          ": expected the contiguous tensor that slstm_forward returned");
  };
  check_saved(pre, "pre", 4 * s.H);
  check_saved(saved, "saved", 3 * s.H);
  SlstmBackwardParams params;
  params.in = call.in;
  params.pre = pre.data_ptr();
  params.saved = saved.data_ptr();
  if (grad_y) {
    check_shape(*grad_y, "grad_y", {s.T, s.B, s.H});
    check_same_kind(*grad_y, "grad_y", gx, "gx");
    params.grad_y = rows_of(call.hold(with_contiguous_rows(*grad_y)));
  }
  const Optional* const grads[] = {&grad_h, &grad_c, &grad_n, &grad_m};
  const char* const names[] = {"grad_h", "grad_c", "grad_n", "grad_m"};
  std::vector<Tensor> of_states;
  for (int i = 0; i < 4; ++i) {
    of_states.push_back(empty({s.B, s.H}, call.type));
    params.grad_states[i] = of_states.back().data_ptr();
    if (!*grads[i]) continue;
    check_shape(**grads[i], names[i], {s.B, s.H});
    check_same_kind(**grads[i], names[i], gx, "gx");
    params.grad_last[i] = call.hold(as_contiguous(**grads[i])).data_ptr();
  }
  const Tensor grad_gx = empty_saved({s.T, s.B, 4 * s.H}, call.type, kLeastKept);
  params.grad_gx = grad_gx.data_ptr();
  const KernelTable& kernels = kernels_in_use();
  run(params, kernels.slstm_backward_workspace, kernels.slstm_backward);
  return {grad_gx, of_states[0], of_states[1], of_states[2], of_states[3]};
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("slstm_forward", TORCH_BOX(&fastrnn::slstm_forward));
  m.impl("slstm_backward", TORCH_BOX(&fastrnn::slstm_backward));
}
