// The checks of check.h for a recurrent layer: afterwards kernels may trust every shape, dtype and length.
#pragma once
#include "ops/rows_args.h"
#include "ops/variant_args.h"
#include "params/rnn.h"

namespace fastrnn {

// A layer's arguments as its operators take them, see ops/schema.cpp.
struct RnnArguments {
  const Tensor& x;
  const Tensor& h0;
  const std::optional<Tensor>& c0;
  const std::vector<Tensor>& weights;
  const std::optional<Tensor>& batch_sizes;
  const std::optional<Tensor>& lengths;
  const std::optional<Tensor>& reset;
  const std::string& cell;
  bool bias;
};

// A layer's checked shape, and what it points into.
struct CheckedLayer {
  LayerShape shape;
  CheckedRows rows;
  int weights_a_direction = 0;

  CheckedLayer() = default;
  CheckedLayer(const CheckedLayer&) = delete;
  CheckedLayer& operator=(const CheckedLayer&) = delete;
};

inline void check_layer(CheckedLayer& out, const RnnArguments& in) {
  const auto& [x, h0, c0, weights, batch_sizes, lengths, reset, cell_name, bias] = in;
  LayerShape& s = out.shape;
  s.cell = parse_cell(cell_name, s.variant);
  s.dtype = parse_dtype(x, "x");
  s.bias = bias;
  const bool lstm = s.cell == CellKind::kLstm;
  const int64_t G = gates_of(s.cell);

  if (batch_sizes) {
    check(x.dim() == 2, "x: expected packed data of shape (N, input_size), got ", shape_of(x));
    check_packed_rows(out.rows, s, *batch_sizes, x.size(0), "x");
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
  check_padded_rows(out.rows, s, x, lengths, reset);
}

// What backward takes beyond forward's arguments.
struct SavedArguments {
  const std::optional<Tensor>& grad_y;
  const std::optional<Tensor>& grad_hn;
  const std::optional<Tensor>& grad_cn;
  const std::optional<Tensor>& grad_cells;
  const Tensor& y;
  const Tensor& gates;
  const Tensor& cells;
};

inline void check_saved(const LayerShape& s, const Tensor& x, const SavedArguments& in) {
  const int64_t out = s.out_size(), N = s.rows();
  const ExpectedShape y_shape =
      s.packed() ? ExpectedShape{N, s.D * out} : ExpectedShape{s.tensor_steps(), s.B, s.D * out};
  const auto check_like_x = [&](const std::optional<Tensor>& t, const char* name, const ExpectedShape& shape) {
    if (!t) return;
    check_shape(*t, name, shape);
    check_same_kind(*t, name, x);
  };
  check_like_x(in.y, "y", y_shape);
  check_like_x(in.grad_y, "grad_y", y_shape);
  check_like_x(in.grad_hn, "grad_hn", {s.D, s.B, out});
  if (facts_of(s.cell).has_cell) {
    check_like_x(in.grad_cn, "grad_cn", {s.D, s.B, s.H});
    check_shape(in.cells, "cells", {s.D, N, s.H});
    check(in.cells.scalar_type() == compute_type(s.dtype) && in.cells.is_contiguous() &&
              in.cells.device() == x.device(),
          "cells: expected the contiguous tensor that rnn_forward returned");
    if (in.grad_cells) {
      check_shape(*in.grad_cells, "grad_cells", {s.D, N, s.H});
      check_same_kind(*in.grad_cells, "grad_cells", in.cells, "cells");
    }
  }
  if (saved_of(s) && in.gates.dim() != 1) {  // (0,): recompute
    check_like_x(in.gates, "gates", {s.D, N, saved_of(s) * s.H});
    check(in.gates.is_contiguous(), "gates: expected the contiguous tensor that rnn_forward returned");
  }
  check(in.y.is_contiguous(), "y: expected the contiguous tensor that rnn_forward returned");
}

}  // namespace fastrnn
