// The tensors that `weights` has more where the argument `cell` names a variant (params/cell_text.h, schema.cpp).
#pragma once
#include "ops/check.h"
#include "params/cell_text.h"

namespace fastrnn {

// "lstm", or "lstm+peephole+norm=1e-05".
inline CellKind parse_cell(const std::string& cell, Variant& variant) {
  const size_t plus = cell.find('+');
  if (plus == std::string::npos) [[likely]]
    return parse_cell(cell);
  const CellKind kind = parse_cell(cell.substr(0, plus));
  const std::string wrong = read_cell_options(cell, plus, kind, variant);
  check(wrong.empty(), wrong);
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
