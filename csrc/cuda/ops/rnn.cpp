// The CUDA implementations of the operators in csrc/ops/schema.cpp. Tensors end in this folder and in
// the tiers' loops: what those call below (stepwise/kernels.h) takes pointers, sizes and a stream.
//
// An op works on the current stream of its tensors' device, allocates from torch's allocator, never waits
// for the device (batch_sizes and lengths are on the CPU) and reads or writes nothing of its own between calls: it
// can be captured in a CUDA graph, and gives the same bits in every run as far as cuBLAS does. Which tier runs
// a pass, plan_cuda says; what surrounds the time loop (the large products) is the same for all.
#include "cuda/torch/sequence.h"
#include "ops/unlisted.h"

namespace fastrnn::cuda {
namespace {

Forward rnn_forward(const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                    const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                    const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset, const std::string& cell,
                    bool bias, int64_t mode) {
  check(mode >= 0 && mode < kModeEnd && mode % kModeTier <= 2,
        "mode: expected what to save, 0 to 2, and options, got ", mode);
  const DeviceGuard device(device_of(x));
  const NoGrad no_grad;
  const Layer layer(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode & kModeTf32);
  return forward(layer, h0, c0, static_cast<Save>(mode % kModeTier), tier_of(mode));
}

Backward rnn_backward(const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_hn,
                      const std::optional<Tensor>& grad_cn, const std::optional<Tensor>& grad_cells, const Tensor& x,
                      const Tensor& h0, const std::optional<Tensor>& c0, const std::vector<Tensor>& weights,
                      const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& lengths,
                      const std::optional<Tensor>& reset, const Tensor& y, const Tensor& gates, const Tensor& cells,
                      const std::string& cell, bool bias, int64_t mode) {
  check(mode >= 0 && mode < kModeEnd, "mode: expected what is needed, 0 to 15, and options, got ", mode);
  const DeviceGuard device(device_of(x));
  const NoGrad no_grad;
  const Layer layer(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode & kModeTf32);
  check_saved(layer.shape(), x, grad_y, grad_hn, grad_cn, y, gates, cells);
  const bool lstm = layer.is(CellKind::kLstm);
  if (grad_cells && lstm) check_grad_cells(layer.shape(), *grad_cells, cells);
  return backward(layer, {.grad_y = grad_y,
                          .grad_hn = grad_hn,
                          .grad_cn = grad_cn,
                          .grad_cells = lstm ? grad_cells : std::nullopt,
                          .h0 = h0,
                          .c0 = c0,
                          .y = y,
                          .gates = gates,
                          .cells = cells,
                          .needs = mode % kModeTier,
                          .wanted = tier_of(mode)});
}

auto rnn_backward_unlisted(const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_hn,
                           const std::optional<Tensor>& grad_cn, const std::optional<Tensor>& grad_cells,
                           const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                           const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                           const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset, const Tensor& y,
                           const Tensor& gates, const Tensor& cells, const std::string& cell, bool bias,
                           int64_t mode) {
  return unlisted(rnn_backward(grad_y, grad_hn, grad_cn, grad_cells, x, h0, c0, weights, batch_sizes, lengths, reset,
                               y, gates, cells, cell, bias, mode),
                  [&] { return empty({0}, x.scalar_type(), device_of(x)); });
}

// What a mode has beside what to save.
int64_t options_of(int64_t mode) {
  check(mode >= 0 && mode % kModeTier <= 2, "mode: expected what to save, 0 to 2, and options, got ", mode);
  return mode - mode % kModeTier;
}

auto rnn_layer(const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0, const std::vector<Tensor>& weights,
               const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& lengths,
               const std::optional<Tensor>& reset, const std::string& cell, bool bias, bool keep_cells,
               int64_t mode) {
  const int64_t saves = options_of(mode) + (keep_cells ? static_cast<int64_t>(Save::kRecompute) : 0);
  return outputs(rnn_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, saves));
}

}  // namespace
}  // namespace fastrnn::cuda

STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, FASTRNN_DEVICE, m) {
  const auto impl = [&](const char* name, auto kernel) {
    m.impl(name, kernel);
    m.impl((std::string(name) + ".script").c_str(), kernel);  // see ops.cpp
  };
  impl("rnn_forward", TORCH_BOX(&fastrnn::cuda::rnn_forward));
  impl("rnn_backward", TORCH_BOX(&fastrnn::cuda::rnn_backward));
  impl("rnn_backward_unlisted", TORCH_BOX(&fastrnn::cuda::rnn_backward_unlisted));
  impl("rnn_layer", TORCH_BOX(&fastrnn::cuda::rnn_layer));
}
