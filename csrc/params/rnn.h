// The plain structs that cross the line between the operators (which know tensors) and the kernels
// (which know pointers and sizes). No torch header below this line.
//
// Letters in shape comments: T steps, B batch rows, I input features, H hidden units, P projected
// size, Hout = P with a projection, else H; G gates, D directions; N rows in all: T*B for a padded
// sequence, sum(batch_sizes) for a packed one.
#pragma once
#include "cells/list.h"
#include "cells/variant.h"
#include "params/mode.h"
#include "params/tensor.h"

namespace fastrnn {

// Row-major weights of one direction, each with contiguous rows; null where absent.
struct DirectionWeights {
  const void* w_ih = nullptr;  // (G*H, I)
  const void* w_hh = nullptr;  // (G*H, Hout)
  const void* b_ih = nullptr;  // (G*H)
  const void* b_hh = nullptr;  // (G*H)
  const void* w_hr = nullptr;  // (P, H), projection only
  // Of a variant; w_hh is (G*H, H/heads) then.
  const void* peephole = nullptr;     // (3*H): i, f, o
  const void* norm_ih = nullptr;      // (G*H)
  const void* norm_hh = nullptr;      // (G*H)
  const void* norm_c = nullptr;       // (H)
  const void* norm_c_bias = nullptr;  // (H)
};

// One layer, one or two directions, the whole sequence.
struct LayerShape {
  CellKind cell = CellKind::kLstm;
  Variant variant;
  Dtype dtype = Dtype::kFloat;
  int64_t T = 0, B = 0, I = 0, H = 0;
  int64_t P = 0;  // 0: no projection
  int D = 1;
  bool bias = false;
  const int64_t* batch_sizes = nullptr;  // T rows active at each step, non-increasing; null: always B
  const int64_t* row_offsets = nullptr;  // T+1 sums of batch_sizes; null with batch_sizes
  // A padded batch of unequal lengths: kernels count its rows from the longest to the shortest, and row b
  // of theirs is row order[b] of every tensor, which keeps all of its T*B rows. Null: rows as they lie.
  const int64_t* order = nullptr;
  int64_t padded_steps = 0;  // with an order: the tensors' T, of which the kernels take the longest row's
  // (T,B): nonzero where a step begins a new sequence, whose state starts from zero. Null: nowhere.
  const uint8_t* resets = nullptr;

  int64_t out_size() const { return P ? P : H; }
  int64_t active(int64_t t) const { return t >= T ? 0 : batch_sizes ? batch_sizes[t] : B; }
  int64_t row_offset(int64_t t) const { return row_offsets ? row_offsets[t] : t * B; }  // active rows before step t
  bool packed() const { return row_offsets && !order; }
  int64_t row_of(int64_t b) const { return order ? order[b] : b; }
  // Row of the tensors' T*B (or, packed, N).
  int64_t tensor_row(int64_t t, int64_t b) const { return packed() ? row_offsets[t] + b : t * B + row_of(b); }
  int64_t tensor_steps() const { return order ? padded_steps : T; }
  int64_t rows() const { return packed() ? row_offsets[T] : tensor_steps() * B; }
  // Whether row b's state does not pass between the steps t-1 and t, in either direction.
  bool cut(int64_t t, int64_t b) const { return resets && t < T && resets[t * B + row_of(b)]; }
};

// Values a unit and step that training keeps for backward, of a layer: a variant's h that y need not hold, and of a norm
// the two products before it.
inline int saved_of(const LayerShape& s) {
  if (!s.variant.any()) return saved_of(s.cell);
  return (saved_of(s.cell) ? saved_of(s.cell) : 1) + (s.variant.norm ? 2 * gates_of(s.cell) : 0);
}

// First element of row b at step t.
inline int64_t row_start(const LayerShape& shape, const Rows& rows, int64_t t, int64_t b) {
  return shape.packed() ? (shape.row_offsets[t] + b) * rows.row_stride
                        : t * rows.step_stride + shape.row_of(b) * rows.row_stride;
}

// Masks of a variant, in the layer's type, null where it has none.
struct StageMasks {
  Rows keep_h;                      // (N, D*Hout): the part of h_{t-1} that stays
  Rows keep_c;                      // (N, D*H): that of c_{t-1}
  const void* recurrent = nullptr;  // (D,B,Hout) on h_{t-1} before the product
};

struct ForwardParams {
  LayerShape shape;
  Save save = Save::kNothing;
  Rows x;
  const void* h0 = nullptr;  // (D,B,Hout)
  const void* c0 = nullptr;  // (D,B,H), LSTM
  DirectionWeights weights[2];
  StageMasks masks;
  const void* packed = nullptr;  // the weights of the one direction as KernelTable::pack left them, or null
  void* y = nullptr;             // (N, D*Hout)
  void* hn = nullptr;            // (D,B,Hout)
  void* cn = nullptr;            // (D,B,H), LSTM
  void* gates = nullptr;         // (D,N,saved*H), layer dtype; null unless save is kGates
  void* cells = nullptr;         // (D,N,H), compute dtype; null unless an LSTM saves
};

// Gradients of the weights are written in the compute dtype (float for half types).
struct WeightGradients {
  void* w_ih = nullptr;
  void* w_hh = nullptr;
  void* b_ih = nullptr;
  void* b_hh = nullptr;
  void* w_hr = nullptr;
  void* peephole = nullptr;
  void* norm_ih = nullptr;
  void* norm_hh = nullptr;
  void* norm_c = nullptr;
  void* norm_c_bias = nullptr;
};

struct BackwardParams {
  LayerShape shape;
  Rows x;
  const void* h0 = nullptr;
  const void* c0 = nullptr;
  DirectionWeights weights[2];
  StageMasks masks;
  const void* y = nullptr;      // as written by forward
  const void* gates = nullptr;  // null: recompute them
  const void* cells = nullptr;
  Rows grad_y;                           // rows of D*Hout; data null: zero
  const void* grad_hn = nullptr;         // (D,B,Hout) or null
  const void* grad_cn = nullptr;         // (D,B,H) or null
  const void* grad_cells = nullptr;      // (D,T*B,H) compute dtype, of every step's c, or null
  void* grad_x[2] = {nullptr, nullptr};  // (N, I) of each direction, layer dtype; null: not needed
  void* grad_h0 = nullptr;               // (D,B,Hout) or null
  void* grad_c0 = nullptr;               // (D,B,H) or null
  bool need_weights = false;
  WeightGradients grad_weights[2];
};

}  // namespace fastrnn
