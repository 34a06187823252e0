// The checks of check.h for the recurrences of cells/elementwise.h and for the sLSTM, whose rows differ alike:
// lengths and steps that begin anew.
#pragma once
#include "ops/check.h"
#include "params/elementwise.h"
#include "params/slstm.h"

namespace fastrnn {

// StepFlags of every step and row from lengths (B,) and cut (T,B), where in the scan's direction a step begins from a
// state of 0; empty where there is neither. Bytes of their own: kernels must not read a tensor that somebody may
// change after its numbers were checked.
inline std::vector<uint8_t> checked_flags(int64_t T, int64_t B, const std::optional<Tensor>& lengths,
                                          const std::optional<Tensor>& cut, const Tensor& x, const char* name_of_x) {
  std::vector<uint8_t> flags;
  if (!lengths && !cut) return flags;
  flags.assign(static_cast<size_t>(T * B), 0);
  if (cut) {
    check_shape(*cut, "cut", {T, B});
    check((cut->scalar_type() == ScalarType::Bool || cut->scalar_type() == ScalarType::Byte) &&
              cut->device() == x.device(),
          "cut: expected bool or uint8 on the device of ", name_of_x, ", got ", kind_of(*cut));
    const Tensor contiguous = cut->is_contiguous() ? *cut : torch::stable::contiguous(*cut);
    const uint8_t* from = static_cast<const uint8_t*>(contiguous.data_ptr());
    for (int64_t i = 0; i < T * B; ++i) flags[i] = from[i] ? StepFlags::kBegins : 0;
  }
  if (lengths) {
    check_shape(*lengths, "lengths", {B});
    check(lengths->scalar_type() == ScalarType::Long && lengths->is_cpu(), "lengths: expected int64 on the CPU, got ",
          kind_of(*lengths));
    const std::vector<int64_t> length = copy_of(*lengths);
    for (int64_t b = 0; b < B; ++b) {
      check(length[b] >= 0 && length[b] <= T, "lengths: expected 0 to ", T, " (the steps of ", name_of_x, "), got ",
            length[b], " in row ", b);
      for (int64_t t = length[b]; t < T; ++t) flags[t * B + b] = 1;
    }
  }
  return flags;
}

inline ElementwiseKind parse_elementwise(const std::string& cell) {
  for (size_t i = 0; i < std::size(kElementwise); ++i) {
    if (cell == kElementwise[i].name) return static_cast<ElementwiseKind>(i);
  }
  check(false,
        "cell: expected 'linear', 'mingru', 'mingru_log', 'minlstm', 'minlstm_log', 'indrnn_tanh' or 'indrnn_relu', "
        "got '",
        cell, "'");
  return ElementwiseKind::kLinear;  // not reached
}

// The shape and the options of `in`, of the arguments of elementwise_forward (ops/schema.cpp).
inline void check_elementwise(ElementwiseInputs& in, const std::string& cell, const Tensor& x,
                              const std::optional<Tensor>& b, const std::optional<Tensor>& weight,
                              const std::optional<Tensor>& h0, bool reverse) {
  in.cell = parse_elementwise(cell);
  in.reverse = reverse;
  const ElementwiseFacts& facts = facts_of(in.cell);
  in.option = facts.option;
  const bool linear = in.cell == ElementwiseKind::kLinear;
  ScanShape& s = in.scan.shape;
  s.dtype = parse_dtype(x, "x");
  check(x.dim() == 3, "x: expected shape (T, B, features), got ", shape_of(x));
  s.T = x.size(0);
  s.B = x.size(1);
  s.K = facts.inputs;
  const int64_t blocks = linear ? 1 : facts.inputs;
  check(x.size(2) % blocks == 0, "x: expected a multiple of ", blocks, " features, got ", x.size(2));
  s.O = x.size(2) / blocks;
  const auto check_like_x = [&](const std::optional<Tensor>& t, const char* name, bool wanted,
                                const ExpectedShape& shape) {
    check(wanted == t.has_value(), name, ": expected ", wanted ? "a tensor" : "none", " with cell '", facts.name,
          "', got ", t ? "one" : "none");
    if (!t) return;
    check_shape(*t, name, shape);
    check_same_kind(*t, name, x);
  };
  check_like_x(b, "b", linear, {s.T, s.B, s.O});
  check_like_x(weight, "weight", facts.weight, {s.O});
  check_like_x(h0, "h0", h0.has_value(), {s.B, s.O});
}

// The shape of an sLSTM, of the arguments of slstm_forward.
inline SlstmShape checked_slstm(const Tensor& gx, const Tensor& weight_hh,
                                const std::vector<std::optional<Tensor>>& states, bool reverse) {
  SlstmShape s;
  s.dtype = parse_dtype(gx, "gx");
  s.reverse = reverse;
  check(gx.dim() == 3 && gx.size(2) > 0 && gx.size(2) % 4 == 0, "gx: expected shape (T, B, 4*H), got ", shape_of(gx));
  s.T = gx.size(0);
  s.B = gx.size(1);
  s.H = gx.size(2) / 4;
  check(weight_hh.dim() == 2 && weight_hh.size(0) == 4 * s.H && weight_hh.size(1) > 0 && s.H % weight_hh.size(1) == 0,
        "weight_hh: expected shape (", 4 * s.H, ", a divisor of ", s.H, "), got ", shape_of(weight_hh));
  check_same_kind(weight_hh, "weight_hh", gx, "gx");
  s.heads = static_cast<int>(s.H / weight_hh.size(1));
  const char* const names[] = {"h0", "c0", "n0", "m0"};
  for (size_t i = 0; i < states.size(); ++i) {
    if (!states[i]) continue;
    check_shape(*states[i], names[i], {s.B, s.H});
    check_same_kind(*states[i], names[i], gx, "gx");
  }
  return s;
}

}  // namespace fastrnn
