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

// A layer's checked shape, with the row counts and offsets of a packed sequence (shape points into them).
struct CheckedLayer {
  LayerShape shape;
  std::vector<int64_t> batch_sizes, row_offsets;
  int weights_a_direction = 0;

  CheckedLayer() = default;
  CheckedLayer(const CheckedLayer&) = delete;
  CheckedLayer& operator=(const CheckedLayer&) = delete;
};

inline void check_layer(CheckedLayer& out, const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                        const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                        const std::string& cell_name, bool bias) {
  LayerShape& s = out.shape;
  s.cell = parse_cell(cell_name);
  s.dtype = parse_dtype(x, "x");
  s.bias = bias;
  const bool lstm = s.cell == CellKind::kLstm;
  const int64_t G = gates_of(s.cell);

  if (batch_sizes) {
    check(x.dim() == 2, "x: expected packed data of shape (N, input_size), got ", shape_of(x));
    out.batch_sizes = read_batch_sizes(*batch_sizes, x.size(0), "x", out.row_offsets);
    s.T = static_cast<int64_t>(out.batch_sizes.size());
    s.batch_sizes = out.batch_sizes.data();
    s.row_offsets = out.row_offsets.data();
    s.B = s.batch_sizes[0];
    s.I = x.size(1);
  } else {
    check(x.dim() == 3, "x: expected shape (T, B, input_size), got ", shape_of(x));
    s.T = x.size(0);
    s.B = x.size(1);
    s.I = x.size(2);
    check(s.T > 0, "x: expected a sequence length larger than 0, got ", s.T);
  }

  check(h0.dim() == 3, "h0: expected shape (directions, B, size), got ", shape_of(h0));
  s.D = static_cast<int>(h0.size(0));
  check(s.D == 1 || s.D == 2, "h0: expected 1 or 2 directions, got ", h0.size(0));
  check(!weights.empty() && weights.size() % s.D == 0, "weights: expected the same number for each of ", s.D,
        " directions, got ", weights.size(), " in all");
  const int a_direction = static_cast<int>(weights.size()) / s.D;
  out.weights_a_direction = a_direction;
  const int plain = bias ? 4 : 2;
  check(a_direction == plain || (lstm && a_direction == plain + 1), "weights: expected ", plain,
        " tensors a direction", lstm ? " (one more with a projection)" : "", ", got ", a_direction);
  const Tensor& w_ih = weights[0];
  check(w_ih.dim() == 2 && w_ih.size(0) % G == 0 && w_ih.size(0) > 0, "weights[0] (w_ih): expected shape (", G,
        " * hidden_size, input_size), got ", shape_of(w_ih));
  s.H = w_ih.size(0) / G;
  if (a_direction > plain) {
    const Tensor& w_hr = weights[plain];
    check(w_hr.dim() == 2 && w_hr.size(0) > 0, "weights[", plain,
          "] (w_hr): expected shape (proj_size, hidden_size), got ", shape_of(w_hr));
    s.P = w_hr.size(0);
  }
  const int64_t out_size = s.out_size();
  const Common common(x);
  static const char* const names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
  for (int d = 0; d < s.D; ++d) {
    for (int i = 0; i < a_direction; ++i) {
      const int at = d * a_direction + i;
      const Tensor& w = weights[at];
      const bool projection = i == plain;
      const ExpectedShape expected = projection ? ExpectedShape{s.P, s.H}
                                     : i == 0   ? ExpectedShape{G * s.H, s.I}
                                     : i == 1   ? ExpectedShape{G * s.H, out_size}
                                                : ExpectedShape{G * s.H};
      const Argument name("weights", at, projection ? "w_hr" : names[i]);
      check_shape(w, name, expected);
      common.check_kind(w, name);
    }
  }
  const auto check_state = [&](const Tensor& state, const char* name, int64_t size) {
    check_shape(state, name, {s.D, s.B, size});
    common.check_kind(state, name);
  };
  check_state(h0, "h0", out_size);
  check(c0.has_value() == lstm, "c0: expected ", lstm ? "a tensor for an LSTM, got none" : "none, got a tensor");
  if (c0) check_state(*c0, "c0", s.H);
}

// What backward takes beyond forward's arguments.
inline void check_saved(const LayerShape& s, const Tensor& x, const std::optional<Tensor>& grad_y,
                        const std::optional<Tensor>& grad_hn, const std::optional<Tensor>& grad_cn, const Tensor& y,
                        const Tensor& gates, const Tensor& cells) {
  const int64_t out = s.out_size(), N = s.rows();
  const ExpectedShape y_shape =
      s.packed() ? ExpectedShape{N, s.D * out} : ExpectedShape{s.tensor_steps(), s.B, s.D * out};
  const auto check_like_x = [&](const std::optional<Tensor>& t, const char* name, const ExpectedShape& shape) {
    if (!t) return;
    check_shape(*t, name, shape);
    check_same_kind(*t, name, x);
  };
  check_like_x(y, "y", y_shape);
  check_like_x(grad_y, "grad_y", y_shape);
  check_like_x(grad_hn, "grad_hn", {s.D, s.B, out});
  if (s.cell == CellKind::kLstm) {
    check_like_x(grad_cn, "grad_cn", {s.D, s.B, s.H});
    check_shape(cells, "cells", {s.D, N, s.H});
    const ScalarType state = s.dtype == Dtype::kDouble ? ScalarType::Double : ScalarType::Float;
    check(cells.scalar_type() == state && cells.is_contiguous() && cells.device() == x.device(),
          "cells: expected the contiguous tensor that rnn_forward returned");
  }
  if (saved_of(s.cell) && gates.dim() != 1) {  // (0,): recompute
    check_like_x(gates, "gates", {s.D, N, saved_of(s.cell) * s.H});
    check(gates.is_contiguous(), "gates: expected the contiguous tensor that rnn_forward returned");
  }
  check(y.is_contiguous(), "y: expected the contiguous tensor that rnn_forward returned");
}

}  // namespace fastrnn
