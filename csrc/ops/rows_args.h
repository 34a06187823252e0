// Checks of how the rows of a batch differ: those of a packed sequence; of a padded batch their lengths, and steps at
// which a row begins a new sequence.
#pragma once
#include <algorithm>
#include <numeric>

#include "ops/check.h"
#include "params/rows.h"

namespace fastrnn {

// What a Rows points into. Copies: kernels must not read a tensor that somebody may change after its numbers were
// checked.
struct CheckedRows {
  std::vector<int64_t> batch_sizes, row_offsets, order;
  std::optional<Tensor> reset;  // contiguous
};

// The rows of packed data, of which there are so many: checks batch_sizes and makes their sums.
inline void check_packed_rows(CheckedRows& out, Rows& shape, const Tensor& batch_sizes, int64_t rows,
                              const char* name_of_rows) {
  check(batch_sizes.dim() == 1 && batch_sizes.scalar_type() == ScalarType::Long && batch_sizes.is_cpu(),
        "batch_sizes: expected a 1-D int64 tensor on the CPU, got shape ", shape_of(batch_sizes));
  check(batch_sizes.size(0) > 0, "batch_sizes: expected at least one step, got none");
  std::vector<int64_t>& of_step = out.batch_sizes = copy_of(batch_sizes);
  std::vector<int64_t>& row_offsets = out.row_offsets;
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
  shape.T = T;
  shape.B = of_step[0];
  shape.batch_sizes = of_step.data();
  shape.row_offsets = row_offsets.data();
}

// A reset (T,B) of steps of x, for a batch that is not packed.
inline void check_reset(const Rows& shape, const Tensor& reset, const Tensor& x, const char* name_of_x = "x") {
  check_shape(reset, "reset", {shape.T, shape.B});
  check((reset.scalar_type() == ScalarType::Bool || reset.scalar_type() == ScalarType::Byte) &&
            reset.device() == x.device(),
        "reset: expected bool or uint8 on the device of ", name_of_x, ", got ", kind_of(reset));
}

// The rows of a padded batch, whose T and B the shape has.
inline void check_padded_rows(CheckedRows& out, Rows& shape, const Tensor& x, const std::optional<Tensor>& lengths,
                              const std::optional<Tensor>& reset) {
  if (!lengths && !reset) return;
  check(!shape.packed(), lengths ? "lengths" : "reset",
        ": expected none with batch_sizes (packed rows end by themselves), got a tensor");
  if (reset) {
    check_reset(shape, *reset, x);
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
  // Rows as long stay in order. Not by std::stable_sort, of which clang says that its library's is deprecated within.
  std::sort(out.order.begin(), out.order.end(),
            [&](int64_t a, int64_t b) { return length[a] != length[b] ? length[a] > length[b] : a < b; });
  out.batch_sizes.resize(shape.T);
  out.row_offsets.assign(shape.T + 1, 0);
  int64_t running = shape.B;
  for (int64_t t = 0; t < shape.T; ++t) {
    while (running > 0 && length[out.order[running - 1]] <= t) --running;
    out.batch_sizes[t] = running;
    out.row_offsets[t + 1] = out.row_offsets[t] + running;
  }
  shape.padded_steps = shape.T;
  shape.T = length[out.order[0]];
  shape.order = out.order.data();
  shape.batch_sizes = out.batch_sizes.data();
  shape.row_offsets = out.row_offsets.data();
}

}  // namespace fastrnn
