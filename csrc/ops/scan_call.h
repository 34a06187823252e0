// The half of the scan's operators that is the same on every device: the arguments as kernels take them, the results
// and their shapes. A device gives the rest, as a class derived from ScanCall:
//
//   Scope(u)            in force for the length of a call
//   Device(arguments, scale)     adds the resets to the flags of the inputs, which are pads so far
//   make(sizes, type)   a contiguous, uninitialised tensor
//   run(params)         a pass; for backward, and one for forward
#pragma once
#include <tuple>
#include <utility>
#include <vector>

#include "ops/scan_args.h"
#include "ops/tensors.h"

namespace fastrnn {

// A scan's checked arguments, kept alive for the length of a call.
class ScanCall {
 public:
  ScanCall(const ScanArguments& arguments, double scale) : type_(arguments.u.scalar_type()) {
    check_scan(checked_, arguments);
    in.shape = checked_.shape;
    in.scale = scale;
    in.u = gate_rows(arguments.u);
    if (arguments.x) in.x = rows(*arguments.x);
    in.weight_c = contiguous(arguments.weight_c);
    in.bias = contiguous(arguments.bias);
    in.c0 = contiguous(arguments.c0);
    if (arguments.v) in.v = gate_rows(*arguments.v);
    if (arguments.drop_mask) in.drop_mask = contiguous(*arguments.drop_mask);
    if (arguments.mask_pad) in.flags = bytes(*arguments.mask_pad);
    if (arguments.reset) resets = bytes(*arguments.reset);
  }
  ScanCall(const ScanCall&) = delete;
  ScanCall& operator=(const ScanCall&) = delete;

  const CheckedScan& checked() const { return checked_; }
  const ScanShape& shape() const { return checked_.shape; }
  ScalarType type() const { return type_; }
  ScalarType compute() const { return compute_type(shape().dtype); }

  const Tensor& hold(Tensor tensor) {
    held_.push_back(std::move(tensor));
    return held_.back();
  }
  const void* contiguous(const Tensor& tensor) { return hold(as_contiguous(tensor)).data_ptr(); }
  TensorRows rows(const Tensor& tensor) { return rows_of(hold(with_contiguous_rows(tensor))); }

  ScanInputs in;
  const uint8_t* resets = nullptr;  // (L,B), which a device adds to the flags

 private:
  GateRows gate_rows(const Tensor& tensor) { return gate_rows_of(hold(with_contiguous_rows(tensor))); }
  const uint8_t* bytes(const Tensor& tensor) { return static_cast<const uint8_t*>(contiguous(tensor)); }

  CheckedScan checked_;
  ScalarType type_;
  std::vector<Tensor> held_;
};

template <class Device>
struct ScanOperators {
  // Also the scan of the programs that tracers write, whose `save` is whether they keep the cells.
  static auto forward(const Tensor& u, const std::optional<Tensor>& x, const Tensor& weight_c, const Tensor& bias,
                      const Tensor& c0, const std::optional<Tensor>& v, const std::optional<Tensor>& mask_pad,
                      const std::optional<Tensor>& drop_mask, const std::optional<Tensor>& batch_sizes,
                      const std::optional<Tensor>& reset, bool use_tanh, double scale, bool bidirectional,
                      bool save) {
    const typename Device::Scope scope(u);
    Device call({u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, reset, use_tanh, bidirectional},
                scale);
    const ScanShape& s = call.shape();
    const Tensor h = call.make(call.checked().sizes({s.O}), call.type()), c = call.make({s.B, s.O}, call.type());
    const Tensor cells = call.make(sizes_if(save, {s.rows(), s.O}), call.compute());
    ScanForwardParams params;
    params.in = call.in;
    params.h = h.data_ptr();
    params.c = c.data_ptr();
    if (save) params.cells = cells.data_ptr();
    call.run(params);
    return std::make_tuple(h, c, cells);
  }

  static auto backward(const std::optional<Tensor>& grad_h, const std::optional<Tensor>& grad_c,
                       const std::optional<Tensor>& grad_cells, const Tensor& u, const std::optional<Tensor>& x,
                       const Tensor& weight_c, const Tensor& bias, const Tensor& c0, const std::optional<Tensor>& v,
                       const std::optional<Tensor>& mask_pad, const std::optional<Tensor>& drop_mask,
                       const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& reset,
                       const Tensor& cells, bool use_tanh, double scale, bool bidirectional, int64_t needs) {
    const typename Device::Scope scope(u);
    Device call({u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, reset, use_tanh, bidirectional},
                scale);
    const CheckedScan& checked = call.checked();
    const ScanShape& s = call.shape();
    check_scan_saved(checked, u, grad_h, grad_c, grad_cells, cells, needs);

    ScanBackwardParams params;
    params.in = call.in;
    params.cells = cells.data_ptr();
    if (grad_h) params.grad_h = call.rows(*grad_h);
    if (grad_c) params.grad_c = call.contiguous(*grad_c);
    if (grad_cells) params.grad_cells = call.contiguous(*grad_cells);
    const auto gradient = [&](bool wanted, std::vector<int64_t> sizes, void*& to) {
      const Tensor made = call.make(sizes_if(wanted, std::move(sizes)), call.type());
      if (wanted) to = made.data_ptr();
      return made;
    };
    const bool need_weights = needs & ScanNeeds::kWeights;
    const Tensor grad_u = gradient(needs & ScanNeeds::kU, checked.sizes({s.K, s.O}), params.grad_u);
    const Tensor grad_x = gradient(x && (needs & ScanNeeds::kX), checked.sizes({s.O}), params.grad_x);
    const Tensor grad_weight_c = gradient(need_weights, {2, s.O}, params.grad_weight_c);
    const Tensor grad_bias = gradient(need_weights, {2, s.O}, params.grad_bias);
    const Tensor grad_c0 = gradient(needs & ScanNeeds::kC0, {s.B, s.O}, params.grad_c0);
    const Tensor grad_v = gradient(v && (needs & ScanNeeds::kV), checked.sizes({2, s.O}), params.grad_v);
    call.run(params);
    return std::make_tuple(grad_u, grad_x, grad_weight_c, grad_bias, grad_c0, grad_v);
  }

 private:
  static std::vector<int64_t> sizes_if(bool wanted, std::vector<int64_t> sizes) {
    return wanted ? std::move(sizes) : std::vector<int64_t>{0};
  }
};

template <class Device, class Library>
void implement_scan(Library& library) {
  using Operators = ScanOperators<Device>;
  library.impl("sru_forward", TORCH_BOX(&Operators::forward));
  library.impl("sru_scan", TORCH_BOX(&Operators::forward));
  library.impl("sru_backward", TORCH_BOX(&Operators::backward));
}

}  // namespace fastrnn
