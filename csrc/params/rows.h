// Which rows of a batch run at which step, as a value: all of them, those of a packed sequence, or those of a padded
// batch up to their lengths; and where one of them begins anew.
#pragma once
#include "params/tensor.h"

namespace fastrnn {

struct Rows {
  int64_t T = 0, B = 0;
  const int64_t* batch_sizes = nullptr;  // T rows active at each step, non-increasing; null: always B
  const int64_t* row_offsets = nullptr;  // T+1 sums of batch_sizes; null with batch_sizes
  // A padded batch of unequal lengths: kernels count its rows from the longest to the shortest, and row b
  // of theirs is row order[b] of every tensor, which keeps all of its T*B rows. Null: rows as they lie.
  const int64_t* order = nullptr;
  int64_t padded_steps = 0;  // with an order: the tensors' T, of which the kernels take the longest row's
  // (T,B): nonzero where a step begins a new sequence, whose state starts from zero. Null: nowhere.
  const uint8_t* resets = nullptr;
  // Of a batch of streams of which some run, one direction: row b's state is row states[b] of the first and last
  // states, which have rows of all streams. Null: the row's own.
  const int64_t* states = nullptr;

  FASTRNN_INLINE int64_t active(int64_t t) const { return t >= T ? 0 : batch_sizes ? batch_sizes[t] : B; }
  FASTRNN_INLINE int64_t row_offset(int64_t t) const {
    return row_offsets ? row_offsets[t] : t * B;
  }  // active rows before step t
  FASTRNN_INLINE bool packed() const { return row_offsets && !order; }
  FASTRNN_INLINE int64_t row_of(int64_t b) const { return order ? order[b] : b; }
  FASTRNN_INLINE int64_t state_row(int64_t b) const { return states ? states[b] : row_of(b); }
  // Row of the tensors' T*B (or, packed, N).
  FASTRNN_INLINE int64_t tensor_row(int64_t t, int64_t b) const {
    return packed() ? row_offsets[t] + b : t * B + row_of(b);
  }
  FASTRNN_INLINE int64_t tensor_steps() const { return order ? padded_steps : T; }
  FASTRNN_INLINE int64_t rows() const { return packed() ? row_offsets[T] : tensor_steps() * B; }
  // Whether row b's state does not pass between the steps t-1 and t, in either direction.
  FASTRNN_INLINE bool cut(int64_t t, int64_t b) const { return resets && t < T && resets[t * B + row_of(b)]; }
};

// First element of row b at step t of a tensor.
FASTRNN_INLINE int64_t row_start(const Rows& rows, const TensorRows& tensor, int64_t t, int64_t b) {
  return rows.packed() ? (rows.row_offsets[t] + b) * tensor.row_stride
                       : t * tensor.step_stride + rows.row_of(b) * tensor.row_stride;
}

}  // namespace fastrnn
