// The passes of a layer, and what their time loops read and fill, whatever the tier.
#pragma once
#include <optional>
#include <utility>
#include <vector>

#include "cuda/torch/layer.h"
#include "cuda/torch/trust.h"
#include "ops/rnn_call.h"
#include "plan/trust.h"

namespace fastrnn::cuda {

inline void* data(const std::optional<Tensor>& tensor) { return tensor ? tensor->data_ptr() : nullptr; }

// The tier for a pass of a layer on its device: the one place where that is decided, whoever calls. Unasked only what
// the device has proven (plan/trust.h); an error where a tier was asked for that cannot take the layer, and where
// the last kernels have left word that they gave up.
inline CudaPlan plan_pass(const Layer& layer, Pass pass, Tier wanted, bool training) {
  const std::string status = taken_status(layer.device);
  check(status.empty(), status, kAfterStatus);
  const CudaDevice& device = device_properties(layer.device);
  if (wanted == Tier::kAuto) {
    DeviceTrust& here = trust_of(layer.device);
    const std::lock_guard lock(here.mutex);
    return plan_trusted(layer.shape(), layer.tf32, pass, device, training, here.trust);
  }
  const CudaPlan plan = plan_cuda(layer.shape(), layer.tf32, pass, device, wanted);
  check(plan.possible, "tier '", tier_name(wanted), "' cannot run this layer's ", pass_name(pass),
        " pass: ", plan.reason);
  return plan;
}

// What the time loop of forward reads and fills, whatever the tier.
struct ForwardSequence {
  Tensor h0;  // (D,B,Hout), any strides
  std::optional<Tensor> c0;
  Tensor gx;         // (D,N,.): x's part of the gates in the first G*H columns, or room for it
  Tensor y, hn, cn;  // results; cn (0,) unless LSTM
  bool save_gates, save_cells;
  Tensor gates, cells;  // (0,) where not saved; gates may be gx
};
// Fills the results.
void forward(const Layer& layer, const RnnArguments& in, const RnnResults& results, Tier tier, bool training);

// What the time loop of backward reads and fills, whatever the tier. Contiguous, but for grad_hn and grad_cn.
struct BackwardSequence {
  Tensor y, gates, cells, h0;
  std::optional<Tensor> c0, grad_y, grad_hn, grad_cn;
  std::optional<Tensor> grad_cells;  // (D,N,H), of every step's c
  Tensor dgates;                     // (D,N,Gr*H), order as in BackwardStep; may be gates
  std::optional<Tensor> dh_y;        // with a projection (D,N,P): gradient of every step's projected h
  std::optional<Tensor> m;           // and (D,N,H): every step's h before the projection, where it is wanted
  std::optional<Tensor> dh0, dc0;    // results, where wanted
};

// Fills the states' gradients where wanted, and returns that of x and those of the weights.
std::pair<Tensor, std::vector<Tensor>> backward(const Layer& layer, const RnnArguments& in,
                                                const SavedArguments& saved, const WantedGradients& wanted, Tier tier,
                                                const Tensor& grad_h0, const Tensor& grad_c0);

}  // namespace fastrnn::cuda
