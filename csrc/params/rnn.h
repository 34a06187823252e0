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
#include "params/rows.h"

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
struct LayerShape : Rows {
  CellKind cell = CellKind::kLstm;
  Variant variant;
  Dtype dtype = Dtype::kFloat;
  int64_t I = 0, H = 0;
  int64_t P = 0;  // 0: no projection
  int D = 1;
  bool bias = false;

  FASTRNN_INLINE int64_t out_size() const { return P ? P : H; }
};

// Values a unit and step that training keeps for backward, of a layer: a variant's h that y need not hold, and of a
// norm the two products before it.
FASTRNN_INLINE int saved_of(const LayerShape& s) {
  if (!s.variant.any()) return saved_of(s.cell);
  return (saved_of(s.cell) ? saved_of(s.cell) : 1) + (s.variant.norm ? 2 * gates_of(s.cell) : 0);
}

// Masks of a variant, in the layer's type, null where it has none.
struct StageMasks {
  TensorRows keep_h;                // (N, D*Hout): the part of h_{t-1} that stays
  TensorRows keep_c;                // (N, D*H): that of c_{t-1}
  const void* recurrent = nullptr;  // (D,B,Hout) on h_{t-1} before the product
};

struct ForwardParams {
  LayerShape shape;
  Save save = Save::kNothing;
  TensorRows x;
  const void* h0 = nullptr;  // (D,B,Hout)
  const void* c0 = nullptr;  // (D,B,H), LSTM
  DirectionWeights weights[2];
  StageMasks masks;
  const void* packed = nullptr;  // the weights of the one direction as KernelTable::pack left them, or null
  bool back = false;             // of a single step: whether units are run from the last to the first
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
  TensorRows x;
  const void* h0 = nullptr;
  const void* c0 = nullptr;
  DirectionWeights weights[2];
  StageMasks masks;
  const void* y = nullptr;      // as written by forward
  const void* gates = nullptr;  // null: recompute them
  const void* cells = nullptr;
  TensorRows grad_y;                     // rows of D*Hout; data null: zero
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
