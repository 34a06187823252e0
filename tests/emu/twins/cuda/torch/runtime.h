// The device as torch has it, for the emulator: the ops run over CPU tensors, torch's CPU
// products stand in for cuBLAS, and whatever the ops allocate lies between guard pages, filled with NaN.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "cuda_on_cpu.h"

#define FASTRNN_DEVICE CPU

namespace fastrnn::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

inline Tensor adopt(AtenTensorHandle handle) { return Tensor(handle); }

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline int device_of(const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), "x: expected a CPU tensor");
  return 0;
}
inline void* current_stream(int) { return nullptr; }

inline torch::stable::Tensor empty(const std::vector<int64_t>& sizes, torch::headeronly::ScalarType type, int) {
  std::vector<int64_t> strides(sizes.size());
  int64_t count = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = count;
    count *= sizes[i];
  }
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  const size_t bytes = count * aoti_torch_dtype_element_size(dtype);
  return torch::stable::from_blob(emu::dev_alloc_bytes(bytes, emu::fmt("a tensor of %ld elements", (long)count)),
                                  sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
                                  [bytes](void* p) { emu::dev_free(p, bytes); });
}

inline void mm_out(const torch::stable::Tensor& out, const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}
inline void addmm_out(const torch::stable::Tensor& out, const torch::stable::Tensor& a,
                      const torch::stable::Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}
inline void bmm_out(const torch::stable::Tensor& out, const torch::stable::Tensor& a,
                    const torch::stable::Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(out.get(), a.get(), b.get()));
}
inline void bmm_out_float(const torch::stable::Tensor& out, const torch::stable::Tensor& a,
                          const torch::stable::Tensor& b) {
  const auto type = torch::headeronly::ScalarType::Float;
  bmm_out(out, torch::stable::to(a, type), torch::stable::to(b, type));
}

inline void check_cuda(int error) { STD_TORCH_CHECK(error == cudaSuccess, "CUDA error ", error); }

}  // namespace fastrnn::cuda
