// What the operators on the CPU have in common: making tensors, handing their memory to kernels, threads.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include "cpu/ops/freed_memory.h"
#include "cpu/ops/scratch.h"
#include "cpu/ops/threads.h"
#include "cpu/team.h"
#include "ops/tensors.h"
#include "ops/variant_args.h"
#include "params/rnn.h"

namespace fastrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Tensors of so many bytes and more are mapped anew by glibc's malloc for every call, whose first touch of a page
// costs more than the kernel's use of it: the SRU's backward pass over 67 MB of gradients took 50 ms, 8 of them its
// own. In huge pages it is a fraction of that, where they are not the host's (huge_pages.h).
constexpr size_t kAlwaysMapped = 32 << 20;

inline Tensor empty(const int64_t* sizes, size_t dim, ScalarType dtype) {
  constexpr size_t kMostDims = 8;
  int64_t strides[kMostDims];
  if (dim > kMostDims) throw std::length_error("empty: expected at most 8 dimensions");
  int64_t stride = 1, numel = 1;
  for (size_t i = dim; i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
    numel *= sizes[i];
  }
  keep_freed_memory(static_cast<size_t>(numel) * sizeof(float));  // or so
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dim), sizes, strides, code,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  constexpr size_t kLargestElement = 16;  // a small tensor need not be asked for its own
  if (static_cast<size_t>(numel) * kLargestElement >= kAlwaysMapped) {
    const size_t bytes = static_cast<size_t>(numel) * tensor.element_size();
    if (bytes >= kAlwaysMapped) wish_for_huge_pages(tensor.data_ptr(), bytes, Lasting::kCall);
  }
  return tensor;
}
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(sizes.begin(), sizes.size(), dtype);
}
inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  return empty(sizes.data(), sizes.size(), dtype);
}

// A tensor that a training step makes and drops, of which the user sees nothing: from `least` bytes on its memory is
// kept for the next (scratch.h). A layer norm's saved values of (100, 32, 256), 39 MB, took a tenth of the training
// step to map and clear. Smaller ones malloc keeps too (freed_memory.h), but of no more than 64 MB together: the
// sLSTM's four, of a few MB each, took half of its training step where it kept less.
inline Tensor empty_saved(std::initializer_list<int64_t> sizes, ScalarType dtype, size_t least = kAlwaysMapped) {
#ifdef __linux__
  size_t bytes = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  bool too_many = false;  // of an expanded input; torch says it
  for (const int64_t size : sizes) too_many |= __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes);
  if (!too_many && bytes >= least && bytes <= Spares::kMost) {
    std::vector<int64_t> strides(sizes.size());
    int64_t stride = 1;
    for (size_t i = sizes.size(); i-- > 0; stride *= sizes.begin()[i]) strides[i] = stride;
    const Mapping mapping = Scratch::lend(bytes);
    AtenTensorHandle handle;
    const AOTITorchError error = torch_from_blob(
        mapping.begin(), static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(), 0,
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), aoti_torch_device_type_cpu(), -1,
        &handle, aoti_torch_layout_strided(), nullptr, 0,
        [](void*, void* word) { Scratch::put_back(Mapping(reinterpret_cast<uintptr_t>(word))); },
        reinterpret_cast<void*>(mapping.word()));
    if (error) Scratch::put_back(mapping);
    TORCH_ERROR_CODE_CHECK(error);
    return Tensor(handle);
  }
#endif
  return empty(sizes, dtype);
}

// The CPU's kernels need nothing around them for the length of a call.
struct NoScope {
  explicit NoScope(const Tensor&) {}
};

// Points the fields of weights, or of their gradients, at one direction's tensors.
template <class Pointers>
void point_at(Pointers& to, const Tensor* weights, const LayerShape& shape) {
  to.w_ih = weights[0].data_ptr();
  to.w_hh = weights[1].data_ptr();
  if (shape.bias) {
    to.b_ih = weights[2].data_ptr();
    to.b_hh = weights[3].data_ptr();
  }
  if (shape.P) to.w_hr = weights[shape.bias ? 4 : 2].data_ptr();
  point_at_variant(to, shape, weights + plain_weights(shape));
}

// A plan of one thread, whatever the workers of its directions.
inline const Parallel kOneThread{
    [](int64_t workers, void (*body)(int64_t, int64_t, void*), void* context) { body(0, workers, context); }};
inline const Parallel kTorchThreads{[](int64_t workers, void (*body)(int64_t, int64_t, void*), void* context) {
  if (workers == 1) {
    body(0, 1, context);
  } else {
    run_on_cpus_of_their_own(workers, body, context);
  }
}};

}  // namespace fastrnn
