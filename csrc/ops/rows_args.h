// Checks of how the rows of a padded batch differ: their lengths, and steps at which a row begins a new sequence.
#pragma once
#include <algorithm>
#include <numeric>

#include "ops/rnn_args.h"

namespace fastrnn {

// What a LayerShape points into.
struct CheckedRows {
  std::vector<int64_t> order, active, row_offsets;
  std::optional<Tensor> reset;  // contiguous
};

inline void check_rows(CheckedRows& out, LayerShape& shape, const Tensor& x, const std::optional<Tensor>& lengths,
                       const std::optional<Tensor>& reset) {
  if (!lengths && !reset) return;
  check(!shape.packed(), lengths ? "lengths" : "reset",
        ": expected none with batch_sizes (packed rows end by themselves), got a tensor");
  if (reset) {
    check_shape(*reset, "reset", {shape.T, shape.B});
    check((reset->scalar_type() == ScalarType::Bool || reset->scalar_type() == ScalarType::Byte) &&
              reset->device() == x.device(),
          "reset: expected bool or uint8 on the device of x, got ", kind_of(*reset));
    out.reset = reset->is_contiguous() ? *reset : torch::stable::contiguous(*reset);
    shape.resets = static_cast<const uint8_t*>(out.reset->data_ptr());
  }
  if (!lengths) return;
  check_shape(*lengths, "lengths", {shape.B});
  check(lengths->scalar_type() == ScalarType::Long && lengths->is_cpu(), "lengths: expected int64 on the CPU, got ",
        kind_of(*lengths));
  const std::vector<int64_t> length = copy_of(*lengths);  // as for batch_sizes
  for (int64_t b = 0; b < shape.B; ++b) {
    check(length[b] >= 0 && length[b] <= shape.T, "lengths: expected 0 to ", shape.T, " (the steps of x), got ",
          length[b], " in row ", b);
  }
  if (!shape.B) return;
  // From the longest to the shortest: then the rows that run at a step are the first ones.
  out.order.resize(shape.B);
  std::iota(out.order.begin(), out.order.end(), int64_t{0});
  std::stable_sort(out.order.begin(), out.order.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  out.active.resize(shape.T);
  out.row_offsets.assign(shape.T + 1, 0);
  int64_t running = shape.B;
  for (int64_t t = 0; t < shape.T; ++t) {
    while (running > 0 && length[out.order[running - 1]] <= t) --running;
    out.active[t] = running;
    out.row_offsets[t + 1] = out.row_offsets[t] + running;
  }
  shape.padded_steps = shape.T;
  shape.T = length[out.order[0]];
  shape.order = out.order.data();
  shape.batch_sizes = out.active.data();
  shape.row_offsets = out.row_offsets.data();
}

inline void check_grad_cells(const LayerShape& shape, const Tensor& grad_cells, const Tensor& cells) {
  check_shape(grad_cells, "grad_cells", {shape.D, shape.rows(), shape.H});
  check_same_kind(grad_cells, "grad_cells", cells);
}

}  // namespace fastrnn
