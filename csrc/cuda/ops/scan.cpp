// The SRU's scan on CUDA devices: tensors in, plain parameter structs to the kernels, tensors out. What
// rnn.cpp says of streams, memory and determinism holds here too.
#include <optional>
#include <tuple>
#include <vector>

#include "cuda/device/upload.h"
#include "cuda/scan/kernels.h"
#include "cuda/torch/tensors.h"
#include "ops/scan_args.h"

namespace fastrnn::cuda {
namespace {

Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

// Checked arguments on the device, kept alive for the length of a call.
class ScanCall {
 public:
  ScanCall(const ScanArguments& arguments, double scale) {
    check_scan(checked_, arguments);
    device_ = arguments.u.get_device_index();
    stream = current_stream(device_);
    type = arguments.u.scalar_type();
    in.shape = checked_.shape;
    in.scale = scale;
    in.u = gate_rows(arguments.u);
    if (arguments.x) in.x = rows(*arguments.x);
    in.weight_c = contiguous(arguments.weight_c);
    in.bias = contiguous(arguments.bias);
    in.c0 = contiguous(arguments.c0);
    if (arguments.v) in.v = gate_rows(*arguments.v);
    if (arguments.drop_mask) in.drop_mask = contiguous(*arguments.drop_mask);
    set_flags(arguments.mask_pad, arguments.reset);
    if (shape().batch_sizes) upload_tables();
  }

  const CheckedScan& checked() const { return checked_; }
  const ScanShape& shape() const { return checked_.shape; }
  Tensor make(const Sizes& sizes, ScalarType of_type) const { return empty(sizes, of_type, device_); }
  Tensor make(const Sizes& sizes) const { return make(sizes, type); }
  ScalarType compute() const { return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

  const void* contiguous(const Tensor& tensor) { return hold(as_contiguous(tensor)).data_ptr(); }
  Rows rows(const Tensor& tensor) {
    const Tensor& held = hold(with_contiguous_rows(tensor));
    const bool padded = held.dim() == 3;
    return {held.data_ptr(), padded ? held.stride(0) : 0, held.stride(padded)};
  }

  ScanInputs in;
  ScanTables tables;
  ScalarType type;
  void* stream;

 private:
  GateRows gate_rows(const Tensor& tensor) {
    const Tensor& held = hold(with_contiguous_rows(tensor));
    const bool padded = held.dim() == 4;
    return {held.data_ptr(), padded ? held.stride(0) : 0, held.stride(padded), held.stride(padded + 1)};
  }
  const Tensor& hold(Tensor tensor) {
    held_.push_back(std::move(tensor));
    return held_.back();
  }

  void set_flags(const std::optional<Tensor>& mask_pad, const std::optional<Tensor>& reset) {
    if (mask_pad) in.flags = static_cast<const uint8_t*>(contiguous(*mask_pad));
    const int64_t steps = shape().L * shape().B;
    if (!reset || !steps) return;
    uint8_t* const flags = static_cast<uint8_t*>(hold(make({shape().D * steps}, ScalarType::Byte)).data_ptr());
    check_cuda(scan_flags(shape(), in.flags, static_cast<const uint8_t*>(contiguous(*reset)), flags, stream));
    in.flags = flags;
    in.flags_stride = steps;
  }
  void upload_tables() {
    const int64_t L = shape().L, B = shape().B;
    std::vector<int64_t> table(shape().row_offsets, shape().row_offsets + L + 1);
    for (int64_t b = 0, length = L; b < B; ++b) {
      while (shape().batch_sizes[length - 1] <= b) --length;
      table.push_back(length);
    }
    int64_t* device = static_cast<int64_t*>(hold(make({L + 1 + B}, ScalarType::Long)).data_ptr());
    check_cuda(upload(table.data(), L + 1 + B, device, stream));
    tables = {device, device + L + 1};
  }

  CheckedScan checked_;
  std::vector<Tensor> held_;
  int device_;
};

std::tuple<Tensor, Tensor, Tensor> sru_forward(const Tensor& u, const std::optional<Tensor>& x,
                                               const Tensor& weight_c, const Tensor& bias, const Tensor& c0,
                                               const std::optional<Tensor>& v, const std::optional<Tensor>& mask_pad,
                                               const std::optional<Tensor>& drop_mask,
                                               const std::optional<Tensor>& batch_sizes,
                                               const std::optional<Tensor>& reset, bool use_tanh, double scale,
                                               bool bidirectional, bool save) {
  const DeviceGuard device(device_of(u));
  const NoGrad no_grad;
  ScanCall call({u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, reset, use_tanh, bidirectional},
                scale);
  const ScanShape& s = call.shape();
  const Tensor h = call.make(call.checked().sizes({s.O})), c = call.make({s.B, s.O});
  const Tensor cells = call.make(save ? Sizes{s.rows(), s.O} : Sizes{0}, call.compute());
  ScanForwardParams params;
  params.in = call.in;
  params.h = h.data_ptr();
  params.c = c.data_ptr();
  params.cells = save ? cells.data_ptr() : nullptr;
  check_cuda(scan_forward(params, call.tables, call.stream));
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
  const DeviceGuard device(device_of(u));
  const NoGrad no_grad;
  ScanCall call({u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, reset, use_tanh, bidirectional},
                scale);
  const CheckedScan& checked = call.checked();
  const ScanShape& s = call.shape();
  check_scan_saved(checked, u, grad_h, grad_c, grad_cells, cells, needs);
  const bool need_u = needs & ScanNeeds::kU, need_x = x && (needs & ScanNeeds::kX),
             need_weights = needs & ScanNeeds::kWeights;
  const bool need_c0 = needs & ScanNeeds::kC0, need_v = v && (needs & ScanNeeds::kV);
  const auto made = [&](bool wanted, const Sizes& sizes) { return call.make(wanted ? sizes : Sizes{0}); };
  const Tensor grad_u = made(need_u, checked.sizes({s.K, s.O})), grad_x = made(need_x, checked.sizes({s.O}));
  const Tensor grad_weight_c = made(need_weights, {2, s.O}), grad_bias = made(need_weights, {2, s.O});
  const Tensor grad_c0 = made(need_c0, {s.B, s.O}), grad_v = made(need_v, checked.sizes({2, s.O}));
  const Tensor partials = call.make(need_weights ? Sizes{s.B, 4, s.O} : Sizes{0}, call.compute());

  ScanBackwardParams params;
  params.in = call.in;
  params.cells = cells.data_ptr();
  if (grad_h) params.grad_h = call.rows(*grad_h);
  if (grad_c) params.grad_c = call.contiguous(*grad_c);
  if (grad_cells) params.grad_cells = call.contiguous(*grad_cells);
  if (need_u) params.grad_u = grad_u.data_ptr();
  if (need_x) params.grad_x = grad_x.data_ptr();
  if (need_c0) params.grad_c0 = grad_c0.data_ptr();
  if (need_v) params.grad_v = grad_v.data_ptr();
  check_cuda(scan_backward(params, call.tables, need_weights ? partials.data_ptr() : nullptr, call.stream));
  if (need_weights) {
    check_cuda(scan_sums(s, partials.data_ptr(), grad_weight_c.data_ptr(), grad_bias.data_ptr(), call.stream));
  }
  return {grad_u, grad_x, grad_weight_c, grad_bias, grad_c0, grad_v};
}

}  // namespace
}  // namespace fastrnn::cuda

STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, FASTRNN_DEVICE, m) {
  m.impl("sru_forward", TORCH_BOX(&fastrnn::cuda::sru_forward));
  m.impl("sru_scan", TORCH_BOX(&fastrnn::cuda::sru_scan));
  m.impl("sru_backward", TORCH_BOX(&fastrnn::cuda::sru_backward));
}
