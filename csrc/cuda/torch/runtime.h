// The device as torch has it, behind the operations of tensors.h: its guard, its stream, its allocator, its
// products. The emulator has a twin of this file, over CPU tensors.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <vector>

// Where the operators are registered.
#define FASTRNN_NAMESPACE fastrnn
#define FASTRNN_DEVICE CUDA

namespace fastrnn::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

inline Tensor adopt(AtenTensorHandle handle) { return Tensor(handle); }

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

inline int device_of(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda(), "x: expected a CUDA tensor like the others");
  return x.get_device_index();
}

inline void* current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

// Torch's current stream, while it lives: its products go there.
class StreamGuard {
 public:
  StreamGuard(void* stream, int device) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_cuda_stream_guard(stream, device, &guard_));
  }
  ~StreamGuard() { aoti_torch_delete_cuda_stream_guard(guard_); }
  StreamGuard(const StreamGuard&) = delete;
  StreamGuard& operator=(const StreamGuard&) = delete;

 private:
  CUDAStreamGuardHandle guard_ = nullptr;
};

// A contiguous, uninitialised tensor on the device.
inline Tensor empty(const Sizes& sizes, ScalarType type, int device) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i];
  }
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  dtype, aoti_torch_device_type_cuda(), device, &out));
  return adopt(out);
}

// The shims below call the CUDA function itself, without a trip through the dispatcher a step.
inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
}
inline void addmm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}
inline void bmm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_bmm_out(out.get(), a.get(), b.get()));
}
// Half-type factors, float result: only the dispatcher knows this overload.
inline void bmm_out_float(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(ScalarType::Float), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // the returned reference to out
}

// dst = src, converting where the types differ.
inline void copy(const Tensor& dst, const Tensor& src) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(dst.get(), src.get(), /*non_blocking=*/0));
}
inline void zero(Tensor t) { torch::stable::zero_(t); }
// out (columns) = the sum of m's rows.
inline void sum_rows(Tensor out, const Tensor& m) {
  const std::array<int64_t, 1> dim{0};
  torch::stable::sum_out(out, m, torch::headeronly::IntHeaderOnlyArrayRef(dim.data(), dim.size()));
}

inline void check_cuda(int error) { STD_CUDA_CHECK(static_cast<cudaError_t>(error)); }

}  // namespace fastrnn::cuda
