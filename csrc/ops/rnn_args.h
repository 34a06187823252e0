// Checks of the recurrent layers' arguments.
#pragma once
#include "ops/variant_args.h"

namespace fastrnn {

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
  s.cell = parse_cell(cell_name, s.variant);
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
  const int masks = variant_masks(s.variant), more = variant_weights(s.cell, s.variant);
  const int tensors = static_cast<int>(weights.size()) - masks;
  check(tensors > 0 && tensors % s.D == 0, "weights: expected the same number for each of ", s.D, " directions, got ",
        tensors, " in all");
  out.weights_a_direction = tensors / s.D;
  const int plain = bias ? 4 : 2, a_direction = out.weights_a_direction - more;
  check(a_direction == plain || (lstm && a_direction == plain + 1), "weights: expected ", plain,
        " tensors a direction", lstm ? " (one more with a projection)" : "", more ? " and those of the variant" : "",
        ", got ", a_direction);
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
  check(s.variant.heads == 1 || (!s.P && s.H % s.variant.heads == 0), "cell: expected heads that divide hidden_size ",
        s.H, " and no projection, got ", s.variant.heads);
  const Common common(x);
  static const char* const names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
  for (int d = 0; d < s.D; ++d) {
    for (int i = 0; i < a_direction; ++i) {
      const int at = d * out.weights_a_direction + i;
      const Tensor& w = weights[at];
      const bool projection = i == plain;
      const ExpectedShape expected = projection ? ExpectedShape{s.P, s.H}
                                     : i == 0   ? ExpectedShape{G * s.H, s.I}
                                     : i == 1   ? ExpectedShape{G * s.H, out_size / s.variant.heads}
                                                : ExpectedShape{G * s.H};
      const Argument name("weights", at, projection ? "w_hr" : names[i]);
      check_shape(w, name, expected);
      common.check_kind(w, name);
    }
    if (more) check_variant_weights(s, weights, d * out.weights_a_direction + a_direction, common);
  }
  if (masks) check_variant_masks(s, weights, common);
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
  if (saved_of(s) && gates.dim() != 1) {  // (0,): recompute
    check_like_x(gates, "gates", {s.D, N, saved_of(s) * s.H});
    check(gates.is_contiguous(), "gates: expected the contiguous tensor that rnn_forward returned");
  }
  check(y.is_contiguous(), "y: expected the contiguous tensor that rnn_forward returned");
}

}  // namespace fastrnn
