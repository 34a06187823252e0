// The CUDA implementations of the operators in csrc/ops/schema.cpp. Tensors end in this folder and in
// the tiers' loops: what those call below (stepwise/kernels.h) takes pointers, sizes and a stream.
//
// An op works on the current stream of its tensors' device, allocates from torch's allocator, never waits
// for the device (batch_sizes and lengths are on the CPU) and keeps nothing between calls but what stepwise/graphs.h
// does, which captures leave alone: it can be captured in a CUDA graph, and gives the same bits in every run as far
// as cuBLAS does. Which tier runs a pass, plan_cuda says; what surrounds the time loop (the large products) is the
// same for all.
#include "cuda/torch/sequence.h"
#include "ops/rnn_call.h"

namespace fastrnn::cuda {
namespace {

struct Cuda {
  static constexpr bool kTiers = true;
  using Scope = cuda::Scope;

  static Tensor make(const Sizes& sizes, ScalarType type, const Tensor& x) {
    return empty(sizes, type, x.get_device_index());
  }
  static Tensor make_saved(const Sizes& sizes, ScalarType type, const Tensor& x) { return make(sizes, type, x); }
  static void forward(const RnnArguments& in, const CheckedLayer& checked, int64_t mode, const RnnResults& results) {
    cuda::forward(Layer(in, checked, mode & kModeTf32), in, results, tier_of(mode), mode % kModeTier != 0);
  }
  static auto backward(const RnnArguments& in, const CheckedLayer& checked, const SavedArguments& saved,
                       const WantedGradients& wanted, int64_t mode, const Tensor& grad_h0, const Tensor& grad_c0) {
    return cuda::backward(Layer(in, checked, mode & kModeTf32), in, saved, wanted, tier_of(mode), grad_h0, grad_c0);
  }
};

}  // namespace
}  // namespace fastrnn::cuda

STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, FASTRNN_DEVICE, m) { fastrnn::implement_rnn<fastrnn::cuda::Cuda>(m); }
