// The SRU's scan on CUDA devices: plain parameter structs of tensors to the kernels. What the operators check and
// return is in ops/scan_call.h; what rnn.cpp says of streams, memory and determinism holds here too.
#include <vector>

#include "cuda/device/upload.h"
#include "cuda/scan/kernels.h"
#include "cuda/torch/tensors.h"
#include "ops/scan_call.h"

namespace fastrnn::cuda {
namespace {

class CudaScan : public ScanCall {
 public:
  using Scope = cuda::Scope;

  CudaScan(const ScanArguments& arguments, double scale)
      : ScanCall(arguments, scale), device_(arguments.u.get_device_index()), stream_(current_stream(device_)) {
    if (resets) set_flags();
    if (shape().batch_sizes) upload_tables();
  }

  Tensor make(const Sizes& sizes, ScalarType of_type) const { return empty(sizes, of_type, device_); }

  void run(const ScanForwardParams& params) const { check_cuda(scan_forward(params, tables_, stream_)); }
  void run(const ScanBackwardParams& params) const {
    const ScanShape& s = shape();
    const bool sums = params.grad_weight_c;
    const Tensor partials = make(sums ? Sizes{s.B, 4, s.O} : Sizes{0}, compute());
    check_cuda(scan_backward(params, tables_, sums ? partials.data_ptr() : nullptr, stream_));
    if (sums) check_cuda(scan_sums(s, partials.data_ptr(), params.grad_weight_c, params.grad_bias, stream_));
  }

 private:
  void set_flags() {
    const int64_t steps = shape().T * shape().B;
    if (!steps) return;
    uint8_t* const flags = static_cast<uint8_t*>(hold(make({shape().D * steps}, ScalarType::Byte)).data_ptr());
    check_cuda(scan_flags(shape(), in.flags, resets, flags, stream_));
    in.flags = flags;
    in.flags_stride = steps;
  }
  void upload_tables() {
    const int64_t L = shape().T, B = shape().B;
    std::vector<int64_t> table(shape().row_offsets, shape().row_offsets + L + 1);
    for (int64_t b = 0, length = L; b < B; ++b) {
      while (shape().batch_sizes[length - 1] <= b) --length;
      table.push_back(length);
    }
    int64_t* device = static_cast<int64_t*>(hold(make({L + 1 + B}, ScalarType::Long)).data_ptr());
    check_cuda(upload(table.data(), L + 1 + B, device, stream_));
    tables_ = {device, device + L + 1};
  }

  int device_;
  void* stream_;
  ScanTables tables_;
};

}  // namespace
}  // namespace fastrnn::cuda

STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, FASTRNN_DEVICE, m) {
  fastrnn::implement_scan<fastrnn::cuda::CudaScan>(m);
}
