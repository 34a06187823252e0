// The one place where an operator's arguments are checked, on every device: afterwards kernels may
// trust every shape, dtype and length. Each message names the argument, what was expected and what
// came.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "params/rnn.h"

namespace fastrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A failed check is a std::runtime_error, which Python sees as a RuntimeError with this text alone
// (torch's own macro would put the source file's path before it). The parts are put together on failure alone: a
// call of one step has dozens of checks, and what they would say took longer than its kernel. So parts are numbers,
// literals and the small values below that know how to write themselves, not strings made beforehand.
template <class... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (condition) [[likely]]
    return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// An expected shape: a few numbers, and no memory of its own.
class ExpectedShape {
 public:
  ExpectedShape(std::initializer_list<int64_t> sizes) : dim_(sizes.size()) {
    std::copy(sizes.begin(), sizes.end(), sizes_);
  }
  ExpectedShape(const std::vector<int64_t>& sizes) : dim_(sizes.size()) {
    std::copy(sizes.begin(), sizes.end(), sizes_);
  }
  bool fits(const Tensor& tensor) const {
    if (tensor.dim() != static_cast<int64_t>(dim_)) return false;
    const auto sizes = tensor.sizes();
    return std::equal(sizes_, sizes_ + dim_, sizes.begin());
  }
  const int64_t* data() const { return sizes_; }
  size_t size() const { return dim_; }

 private:
  static constexpr size_t kMostDims = 4;
  int64_t sizes_[kMostDims] = {};
  size_t dim_;
};

// "(3, 4)". Lives as long as the expression that it is written in.
struct Listed {
  const int64_t* sizes;
  size_t dim;
  friend std::ostream& operator<<(std::ostream& out, const Listed& listed) {
    out << '(';
    for (size_t i = 0; i < listed.dim; ++i) out << (i ? ", " : "") << listed.sizes[i];
    return out << ')';
  }
};

struct ShapeOf {
  const Tensor& tensor;
  friend std::ostream& operator<<(std::ostream& out, const ShapeOf& shape) {
    const auto sizes = shape.tensor.sizes();
    return out << Listed{sizes.data(), sizes.size()};
  }
};
inline ShapeOf shape_of(const Tensor& tensor) { return {tensor}; }

// "float32 on cpu"
struct KindOf {
  const Tensor& tensor;
  friend std::ostream& operator<<(std::ostream& out, const KindOf& kind) {
    static const char* const names[] = {"uint8",   "int8",    "int16",     "int32",     "int64",      "float16",
                                        "float32", "float64", "complex32", "complex64", "complex128", "bool"};
    const Tensor& t = kind.tensor;
    const int code = static_cast<int>(t.scalar_type());
    if (t.scalar_type() == ScalarType::BFloat16) {
      out << "bfloat16";
    } else if (code >= 0 && code < 12) {
      out << names[code];
    } else {
      out << "ScalarType " << code;
    }
    out << " on ";
    if (t.is_cpu()) return out << "cpu";
    if (t.is_cuda()) return out << "cuda:" << t.get_device_index();
    return out << "another device";
  }
};
inline KindOf kind_of(const Tensor& tensor) { return {tensor}; }

// A name that is a literal, or one of a list's: "weights[2] (b_ih)".
struct Argument {
  const char* text;
  int64_t at = -1;
  const char* role = nullptr;
  Argument(const char* text) : text(text) {}
  Argument(const char* text, int64_t at, const char* role) : text(text), at(at), role(role) {}
  friend std::ostream& operator<<(std::ostream& out, const Argument& name) {
    out << name.text;
    if (name.at >= 0) out << '[' << name.at << "] (" << name.role << ')';
    return out;
  }
};

// What every tensor of a call has in common with the first.
class Common {
 public:
  explicit Common(const Tensor& tensor, const char* name = "x")
      : tensor_(tensor), name_(name), dtype_(tensor.scalar_type()), device_(tensor.device()) {}
  void check_kind(const Tensor& other, const Argument& argument) const {
    check(other.scalar_type() == dtype_ && other.device() == device_, argument, ": expected the dtype and device of ",
          name_, ", ", kind_of(tensor_), ", got ", kind_of(other));
  }

 private:
  const Tensor& tensor_;
  const char* name_;
  ScalarType dtype_;
  torch::stable::Device device_;
};
inline void check_same_kind(const Tensor& tensor, const Argument& name, const Tensor& x,
                            const char* name_of_x = "x") {
  Common(x, name_of_x).check_kind(tensor, name);
}

inline void check_shape(const Tensor& tensor, const Argument& name, const ExpectedShape& expected) {
  check(expected.fits(tensor), name, ": expected shape ", Listed{expected.data(), expected.size()}, ", got ",
        shape_of(tensor));
}

// The optional gradients of an operator: null where absent.
inline const Tensor* tensor_or_null(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

inline CellKind parse_cell(const std::string& cell) {
  for (size_t i = 0; i < std::size(kCells); ++i) {
    if (cell == kCells[i].name) return static_cast<CellKind>(i);
  }
  check(false, "cell: expected 'lstm', 'gru', 'rnn_tanh' or 'rnn_relu', got '", cell, "'");
  return CellKind::kLstm;  // not reached
}

inline Dtype parse_dtype(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat;
    case ScalarType::Double:
      return Dtype::kDouble;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kHalf;
    default:
      check(false, name, ": expected dtype float32, float64, bfloat16 or float16, got ", kind_of(tensor));
  }
  return Dtype::kFloat;  // not reached
}

// The numbers of a 1-D int64 tensor on the CPU.
inline std::vector<int64_t> copy_of(const Tensor& numbers) {
  const Tensor contiguous = numbers.is_contiguous() ? numbers : torch::stable::contiguous(numbers);
  const int64_t* const from = static_cast<const int64_t*>(contiguous.data_ptr());
  return {from, from + contiguous.numel()};
}

// Checks batch_sizes against the number of packed rows and makes their sums. Returns a copy: kernels must
// not read a tensor that somebody may change after its numbers were checked.
inline std::vector<int64_t> read_batch_sizes(const Tensor& batch_sizes, int64_t rows, const char* name_of_rows,
                                             std::vector<int64_t>& row_offsets) {
  check(batch_sizes.dim() == 1 && batch_sizes.scalar_type() == ScalarType::Long && batch_sizes.is_cpu(),
        "batch_sizes: expected a 1-D int64 tensor on the CPU, got shape ", shape_of(batch_sizes));
  check(batch_sizes.size(0) > 0, "batch_sizes: expected at least one step, got none");
  std::vector<int64_t> of_step = copy_of(batch_sizes);
  const int64_t T = static_cast<int64_t>(of_step.size());
  row_offsets.resize(T + 1);
  for (int64_t t = 0; t < T; ++t) {
    const int64_t n = of_step[t];
    check(n > 0, "batch_sizes: expected positive, non-increasing numbers, got ", n, " at step ", t);
    check(t == 0 || n <= of_step[t - 1], "batch_sizes: expected positive, non-increasing numbers, got ", n,
          " at step ", t, " after ", of_step[t ? t - 1 : 0]);
    // Before the sum, which must not overflow.
    check(n <= rows - row_offsets[t], "batch_sizes: expected a sum of ", rows, " (the rows of ", name_of_rows,
          "), got more");
    row_offsets[t + 1] = row_offsets[t] + n;
  }
  check(row_offsets[T] == rows, "batch_sizes: expected a sum of ", rows, " (the rows of ", name_of_rows, "), got ",
        row_offsets[T]);
  return of_step;
}

}  // namespace fastrnn
