// The checks of check.h for the SRU's scan: afterwards kernels may trust every shape, dtype and length.
#pragma once
#include "ops/rows_args.h"
#include "params/scan.h"

namespace fastrnn {

// The scan's arguments as its operators take them, see ops/schema.cpp.
struct ScanArguments {
  const Tensor& u;
  const std::optional<Tensor>& x;
  const Tensor& weight_c;
  const Tensor& bias;
  const Tensor& c0;
  const std::optional<Tensor>& v;
  const std::optional<Tensor>& mask_pad;
  const std::optional<Tensor>& drop_mask;
  const std::optional<Tensor>& batch_sizes;
  const std::optional<Tensor>& reset;
  bool use_tanh;
  bool bidirectional;
};

// A scan's checked shape, and what it points into.
struct CheckedScan {
  ScanShape shape;
  CheckedRows rows;

  CheckedScan() = default;
  CheckedScan(const CheckedScan&) = delete;
  CheckedScan& operator=(const CheckedScan&) = delete;

  // ExpectedShape of rows of features: (L,B,...) or, packed, (N,...).
  std::vector<int64_t> sizes(std::vector<int64_t> features) const {
    std::vector<int64_t> out =
        shape.batch_sizes ? std::vector<int64_t>{shape.rows()} : std::vector<int64_t>{shape.T, shape.B};
    out.insert(out.end(), features.begin(), features.end());
    return out;
  }
};

inline void check_scan(CheckedScan& out, const ScanArguments& in) {
  ScanShape& s = out.shape;
  s.dtype = parse_dtype(in.u, "u");
  s.use_tanh = in.use_tanh;
  s.D = in.bidirectional ? 2 : 1;
  if (in.batch_sizes) {
    check(in.u.dim() == 3, "u: expected packed data of shape (N, K, O), got ", shape_of(in.u));
    check_packed_rows(out.rows, s, *in.batch_sizes, in.u.size(0), "u");
  } else {
    check(in.u.dim() == 4, "u: expected shape (L, B, K, O), got ", shape_of(in.u));
    s.T = in.u.size(0);
    s.B = in.u.size(1);
  }
  const int64_t K = in.u.size(in.u.dim() - 2);
  check(K == 3 || K == 4, "u: expected K = 3 or 4 projections a feature, got ", K, " (shape ", shape_of(in.u), ")");
  s.K = static_cast<int>(K);
  s.O = in.u.size(in.u.dim() - 1);
  check(s.O > 0 && s.O % s.D == 0, "u: expected ", s.D == 2 ? "an even, positive" : "a positive",
        " number of features O, got ", s.O);

  const auto check_like_u = [&](const Tensor& t, const char* name, const ExpectedShape& shape) {
    check_shape(t, name, shape);
    check_same_kind(t, name, in.u, "u");
  };
  check(!(in.x && K == 4), "x: expected none with K = 4 (u holds the skip term), got a tensor");
  if (in.x) check_like_u(*in.x, "x", out.sizes({s.O}));
  check_like_u(in.weight_c, "weight_c", {2, s.O});
  check_like_u(in.bias, "bias", {2, s.O});
  check_like_u(in.c0, "c0", {s.B, s.O});
  if (in.v) check_like_u(*in.v, "v", out.sizes({2, s.O}));
  if (in.mask_pad) {
    check(!in.batch_sizes, "mask_pad: expected none with batch_sizes (a packed sequence has no pads), got a tensor");
    check_shape(*in.mask_pad, "mask_pad", {s.T, s.B});
    check(in.mask_pad->scalar_type() == ScalarType::Bool && in.mask_pad->device() == in.u.device(),
          "mask_pad: expected dtype bool on the device of u, got ", kind_of(*in.mask_pad));
  }
  if (in.drop_mask) check_like_u(*in.drop_mask, "drop_mask", {s.B, s.O});
  if (in.reset) {
    check(!in.batch_sizes, "reset: expected none with batch_sizes (packed rows end by themselves), got a tensor");
    check_reset(s, *in.reset, in.u, "u");
  }
}

// What backward takes beyond forward's arguments.
inline void check_scan_saved(const CheckedScan& checked, const Tensor& u, const std::optional<Tensor>& grad_h,
                             const std::optional<Tensor>& grad_c, const std::optional<Tensor>& grad_cells,
                             const Tensor& cells, int64_t needs) {
  const ScanShape& s = checked.shape;
  if (grad_h) {
    check_shape(*grad_h, "grad_h", checked.sizes({s.O}));
    check_same_kind(*grad_h, "grad_h", u, "u");
  }
  if (grad_c) {
    check_shape(*grad_c, "grad_c", {s.B, s.O});
    check_same_kind(*grad_c, "grad_c", u, "u");
  }
  check_shape(cells, "cells", {s.rows(), s.O});
  check(cells.scalar_type() == compute_type(s.dtype) && cells.is_contiguous() && cells.device() == u.device(),
        "cells: expected the contiguous tensor that sru_forward returned");
  if (grad_cells) {
    check_shape(*grad_cells, "grad_cells", {s.rows(), s.O});
    check_same_kind(*grad_cells, "grad_cells", cells, "cells");
  }
  check(needs >= 0 && needs <= 31, "needs: expected 0 to 31, got ", needs);
}

}  // namespace fastrnn
