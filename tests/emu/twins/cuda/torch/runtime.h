// The device as torch has it, for the emulator: the ops run over CPU tensors, torch's CPU
// products stand in for cuBLAS, and whatever the ops allocate lies between guard pages, filled with NaN.
// What torch computes is work of its current stream, like a kernel.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <exception>
#include <vector>

#include "cuda_on_cpu.h"

#define FASTRNN_DEVICE CPU

namespace emu {
// Torch's allocator: the number among its tensors to come of the one that there is no room for (-1: for all there
// is), whether what this thread allocates is of a pool that its caller has chosen, and how many of such there are.
inline int64_t no_room = -1;
inline thread_local bool in_pool = false;
inline int pooled = 0;
}  // namespace emu

namespace fastrnn::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

inline Tensor adopt(AtenTensorHandle handle) { return Tensor(handle); }

// Behind an operator the host waits for the device, unless a test does: whoever called looks at the results.
struct DeviceGuard {
  explicit DeviceGuard(int) : raising_(std::uncaught_exceptions()) {}
  ~DeviceGuard() noexcept(false) {
    if (emu::opt.waits && std::uncaught_exceptions() == raising_) emu::synchronize();
  }

 private:
  int raising_;
};
// Torch's current stream, while it lives.
class StreamGuard {
 public:
  StreamGuard(void* stream, int) : before_(emu::device.current) { emu::device.current = stream; }
  ~StreamGuard() { emu::device.current = before_; }
  StreamGuard(const StreamGuard&) = delete;
  StreamGuard& operator=(const StreamGuard&) = delete;

 private:
  void* before_;
};

inline int device_of(const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), "x: expected a CPU tensor");
  return 0;
}
inline void* current_stream(int) { return emu::device.current; }
inline void on_stream(emu::Work work) { emu::submit(emu::device.current, std::move(work)); }

inline torch::stable::Tensor empty(const std::vector<int64_t>& sizes, torch::headeronly::ScalarType type, int) {
  std::vector<int64_t> strides(sizes.size());
  int64_t count = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = count;
    count *= sizes[i];
  }
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  const size_t bytes = count * aoti_torch_dtype_element_size(dtype);
  emu::check_allocation();
  if (emu::no_room >= 0 && emu::no_room-- == 0) throw emu::Error("out of memory");
  const int pooled = emu::in_pool && count;
  emu::pooled += pooled;
  return torch::stable::from_blob(emu::dev_alloc_bytes(bytes, emu::fmt("a tensor of %ld elements", (long)count)),
                                  sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
                                  [bytes, pooled, of = emu::device.current](void* p) {
                                    emu::pooled -= pooled;
                                    emu::free_in_turn(of, p, bytes);
                                  });
}

inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  on_stream([=] { TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get())); });
}
inline void addmm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  on_stream(
      [=] { TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0)); });
}
inline void bmm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  on_stream([=] { TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(out.get(), a.get(), b.get())); });
}
inline void bmm_out_float(const Tensor& out, const Tensor& a, const Tensor& b) {
  const auto type = torch::headeronly::ScalarType::Float;
  on_stream([=] {
    const Tensor wide_a = torch::stable::to(a, type), wide_b = torch::stable::to(b, type);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(out.get(), wide_a.get(), wide_b.get()));
  });
}
inline void copy(const Tensor& dst, const Tensor& src) {
  on_stream([=] { TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(dst.get(), src.get(), 0)); });
}
inline void zero(const Tensor& t) {
  on_stream([t = t]() mutable { torch::stable::zero_(t); });
}
inline void sum_rows(const Tensor& out, const Tensor& m) {
  on_stream([out = out, m]() mutable {
    const std::array<int64_t, 1> dim{0};
    torch::stable::sum_out(out, m, torch::headeronly::IntHeaderOnlyArrayRef(dim.data(), dim.size()));
  });
}

inline void check_cuda(int error) { STD_TORCH_CHECK(error == cudaSuccess, "CUDA error ", error); }

}  // namespace fastrnn::cuda
