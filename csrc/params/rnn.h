// The plain structs that cross the line between the operators (which know tensors) and the kernels
// (which know pointers and sizes). No torch header below this line.
//
// Letters in shape comments: T steps, B batch rows, I input features, H hidden units, P projected
// size, Hout = P with a projection, else H; G gates, D directions; N rows in all: T*B for a padded
// sequence, sum(batch_sizes) for a packed one.
#pragma once
#include "cells/list.h"
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
};

// One layer, one or two directions, the whole sequence.
struct LayerShape : Rows {
  CellKind cell = CellKind::kLstm;
  Dtype dtype = Dtype::kFloat;
  int64_t I = 0, H = 0;
  int64_t P = 0;  // 0: no projection
  int D = 1;
  bool bias = false;

  int64_t out_size() const { return P ? P : H; }
};

struct ForwardParams {
  LayerShape shape;
  Save save = Save::kNothing;
  TensorRows x;
  const void* h0 = nullptr;  // (D,B,Hout)
  const void* c0 = nullptr;  // (D,B,H), LSTM
  DirectionWeights weights[2];
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
};

struct BackwardParams {
  LayerShape shape;
  TensorRows x;
  const void* h0 = nullptr;
  const void* c0 = nullptr;
  DirectionWeights weights[2];
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
