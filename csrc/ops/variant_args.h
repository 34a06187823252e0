// What the argument `cell` may say beside a cell's name, and the tensors that `weights` then has more (schema.cpp).
#pragma once
#include <charconv>
#include <string_view>

#include "ops/check.h"

namespace fastrnn {

// One option of `cell`, "name" or "name=value".
inline void read_option(Variant& v, CellKind cell, std::string_view option, const std::string& whole) {
  const size_t equals = option.find('=');
  const std::string_view name = option.substr(0, equals);
  const std::string_view value = equals == std::string_view::npos ? std::string_view() : option.substr(equals + 1);
  const bool lstm = cell == CellKind::kLstm;
  bool known = true, valued = false;
  const auto set = [&](bool& flag, bool fits) {
    check(fits, "cell: '", kCells[static_cast<int>(cell)].name, "' has no option '", std::string(name), "', got '",
          whole, "'");
    check(!flag, "cell: expected each option once, got '", whole, "'");
    flag = true;
  };
  const auto read = [&](auto& number) {
    valued = true;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    return error == std::errc() && end == value.data() + value.size();
  };
  if (name == "peephole") {
    set(v.peephole, lstm);
  } else if (name == "coupled") {
    set(v.coupled, lstm);
  } else if (name == "reset_before") {
    set(v.reset_before, cell == CellKind::kGru);
  } else if (name == "zoneout_h") {
    set(v.zoneout_h, true);
  } else if (name == "zoneout_c") {
    set(v.zoneout_c, lstm);
  } else if (name == "recurrent_mask") {
    set(v.recurrent_mask, true);
  } else if (name == "norm") {
    set(v.norm, true);
    check(read(v.eps) && v.eps >= 0, "cell: expected norm=eps with a number of at least 0, got '", whole, "'");
  } else if (name == "heads") {
    check(v.heads == 1, "cell: expected each option once, got '", whole, "'");
    check(read(v.heads) && v.heads >= 1, "cell: expected heads=n with a positive number, got '", whole, "'");
  } else {
    known = false;
  }
  check(known && (valued || equals == std::string_view::npos),
        "cell: expected options peephole, coupled, reset_before, norm=eps, heads=n, zoneout_h, zoneout_c or "
        "recurrent_mask behind the name, each after a +, got '",
        whole, "'");
}

// "lstm", or "lstm+peephole+norm=1e-05".
inline CellKind parse_cell(const std::string& cell, Variant& variant) {
  const size_t plus = cell.find('+');
  if (plus == std::string::npos) [[likely]]
    return parse_cell(cell);
  const CellKind kind = parse_cell(cell.substr(0, plus));
  const std::string_view all = cell;
  for (size_t at = plus; at != std::string::npos;) {
    const size_t next = all.find('+', at + 1);
    // An exponent may have a sign: norm=1e+2.
    size_t end = next;
    if (end != std::string::npos && all[end - 1] == 'e' && all.substr(at + 1, 5) == "norm=")
      end = all.find('+', end + 1);
    read_option(variant, kind, all.substr(at + 1, end == std::string::npos ? end : end - at - 1), cell);
    at = end;
  }
  check(!(variant.norm && variant.reset_before), "cell: norm and reset_before do not go together, got '", cell, "'");
  return kind;
}

// How many tensors a direction has more, and how many masks stand behind all directions.
inline int variant_weights(CellKind cell, const Variant& v) {
  return v.peephole + (v.norm ? (cell == CellKind::kLstm ? 4 : 2) : 0);
}
inline int variant_masks(const Variant& v) { return v.zoneout_h + v.zoneout_c + v.recurrent_mask; }

// How many a direction has without them.
inline int plain_weights(const LayerShape& s) { return (s.bias ? 4 : 2) + (s.P > 0); }

// Checks them, `first` being the first of a direction's.
inline void check_variant_weights(const LayerShape& s, const std::vector<Tensor>& weights, int first,
                                  const Common& common) {
  const int64_t G = gates_of(s.cell);
  const auto take = [&](const char* role, int64_t size) {
    const Argument name("weights", first, role);
    check_shape(weights[first], name, {size});
    common.check_kind(weights[first], name);
    ++first;
  };
  if (s.variant.peephole) take("peephole", 3 * s.H);
  if (!s.variant.norm) return;
  take("norm_ih", G * s.H);
  take("norm_hh", G * s.H);
  if (s.cell != CellKind::kLstm) return;
  take("norm_c", s.H);
  take("norm_c_bias", s.H);
}
inline void check_variant_masks(const LayerShape& s, const std::vector<Tensor>& weights, const Common& common) {
  int at = static_cast<int>(weights.size()) - variant_masks(s.variant);
  const auto take = [&](const char* role, const ExpectedShape& shape) {
    const Argument name("weights", at, role);
    check_shape(weights[at], name, shape);
    common.check_kind(weights[at], name);
    ++at;
  };
  const auto rows = [&](int64_t width) {
    return s.packed() ? ExpectedShape{s.rows(), width} : ExpectedShape{s.tensor_steps(), s.B, width};
  };
  if (s.variant.zoneout_h) take("keep_h", rows(s.D * s.out_size()));
  if (s.variant.zoneout_c) take("keep_c", rows(s.D * s.H));
  if (s.variant.recurrent_mask) take("recurrent_mask", {s.D, s.B, s.out_size()});
}

// Pointers to a direction's tensors of a variant, or to their gradients.
template <class Pointers>
void point_at_variant(Pointers& to, const LayerShape& s, const Tensor* from) {
  int n = 0;
  if (s.variant.peephole) to.peephole = from[n++].data_ptr();
  if (s.variant.norm) {
    to.norm_ih = from[n++].data_ptr();
    to.norm_hh = from[n++].data_ptr();
    if (s.cell == CellKind::kLstm) {
      to.norm_c = from[n++].data_ptr();
      to.norm_c_bias = from[n++].data_ptr();
    }
  }
}

}  // namespace fastrnn
