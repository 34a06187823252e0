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

// Of states, and of sums: half types are widened.
inline ScalarType compute_type(Dtype dtype) {
  return dtype == Dtype::kDouble ? ScalarType::Double : ScalarType::Float;
}

// The numbers of a 1-D int64 tensor on the CPU.
inline std::vector<int64_t> copy_of(const Tensor& numbers) {
  const Tensor contiguous = numbers.is_contiguous() ? numbers : torch::stable::contiguous(numbers);
  const int64_t* const from = static_cast<const int64_t*>(contiguous.data_ptr());
  return {from, from + contiguous.numel()};
}

}  // namespace fastrnn
