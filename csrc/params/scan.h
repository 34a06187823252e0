// The plain structs of the SRU's scan, as rnn.h holds those of the other layers: what crosses the line
// between the operators (which know tensors) and the kernels (which know pointers and sizes).
//
// Letters: L steps, B batch rows, D directions, O = D*H output features with the direction outermost,
// K projections a feature (3: x~, f, r; 4: the skip term behind them); N rows in all: L*B, or
// sum(batch_sizes) of a packed sequence. Every column (row b, feature o) is a recurrence of its own.
#pragma once
#include "cells/host_device.h"
#include "params/rows.h"

namespace fastrnn {

// Rows of `K` or 2 groups of O features each: u and v. Features are contiguous, strides count elements.
struct GateRows {
  void* data = nullptr;
  int64_t step_stride = 0;
  int64_t row_stride = 0;
  int64_t gate_stride = 0;
};

// Its steps, L above, are T of Rows.
struct ScanShape : Rows {
  Dtype dtype = Dtype::kFloat;
  int64_t O = 0;
  int K = 3;
  int D = 1;
  bool use_tanh = false;

  FASTRNN_INLINE int64_t H() const { return O / D; }
};

// What a row's step is besides an ordinary one, in ScanInputs::flags.
struct StepFlags {
  static constexpr uint8_t kPad = 0x7f;     // one of these bits: c is carried, h is 0
  static constexpr uint8_t kBegins = 0x80;  // the direction takes 0 in place of c of the step before
};

// The flags of direction d's step and row `at`, t * B + b, from pads (or null) and resets, (L,B) each: steps that
// begin a new sequence, between which and the step before them in time the state does not pass, whichever the
// direction comes from. A pad begins nothing. The reverse direction comes from the later step, so it begins anew
// at the earlier one.
FASTRNN_HD uint8_t step_flags(const uint8_t* pads, const uint8_t* resets, int64_t L, int64_t B, int d, int64_t at) {
  const int64_t beginning = d ? at + B : at;
  const bool begins = beginning < L * B && resets[beginning] && !(pads && pads[beginning]);
  return static_cast<uint8_t>((pads && pads[at] ? 1 : 0) | (begins ? StepFlags::kBegins : 0));
}

// What forward and backward both read; everything in the layer's type, contiguous where no stride says
// otherwise.
struct ScanInputs {
  ScanShape shape;
  GateRows u;                       // (N,K,O)
  TensorRows x;                     // (N,O), K = 3 only; null: no skip term
  double scale = 1;                 // of x
  const void* weight_c = nullptr;   // (2,O): forget, reset
  const void* bias = nullptr;       // (2,O)
  const void* c0 = nullptr;         // (B,O)
  GateRows v;                       // (N,2,O), added to weight_c; or null
  const void* drop_mask = nullptr;  // (B,O) on the highway difference, or null
  const uint8_t* flags = nullptr;   // (L,B) of StepFlags for each direction; or null; never of a packed sequence
  int64_t flags_stride = 0;         // from one direction's to the other's, 0 where they are the same
};

// u = x W^T of a few rows, for a single step: W (O*K,I) has the K rows of a feature next to each other, u
// (B,K,O) the features.
struct GateProductParams {
  Dtype dtype = Dtype::kFloat;
  int64_t B = 0, I = 0, O = 0;
  int K = 3;
  TensorRows x;                  // (B,I), rows at row_stride
  const void* weight = nullptr;  // contiguous
  void* u = nullptr;             // contiguous, in the layer's type
};

struct ScanForwardParams {
  ScanInputs in;
  void* h = nullptr;      // (N,O)
  void* c = nullptr;      // (B,O): the last state
  void* cells = nullptr;  // (N,O) in the compute type: c of every step; null: not saved
};

struct ScanBackwardParams {
  ScanInputs in;
  const void* cells = nullptr;       // (N,O) as written by forward
  TensorRows grad_h;                 // (N,O); null: zero
  const void* grad_c = nullptr;      // (B,O); null: zero
  const void* grad_cells = nullptr;  // (N,O) in the compute type, of every step's c; null: zero
  void* grad_u = nullptr;            // (N,K,O), contiguous; this and all below: null where not wanted
  void* grad_x = nullptr;            // (N,O)
  void* grad_weight_c = nullptr;     // (2,O)
  void* grad_bias = nullptr;         // (2,O); with grad_weight_c or not at all
  void* grad_c0 = nullptr;           // (B,O)
  void* grad_v = nullptr;            // (N,2,O)
};

}  // namespace fastrnn
