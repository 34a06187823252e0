// The kernels of the stepwise tier: everything of a time step that is not a matrix product. The time loop around
// them (forward.cpp, backward.cpp) alternates one library GEMM and one of these kernels a step, which serves every
// shape, dtype and cell, and can be captured in a CUDA graph.
//
// All pointers are device memory, all tensors contiguous unless a stride is named. "T" after a shape is
// the layer's type, "A" the compute type (float for half types, else the same as T). Letters as in
// params/rnn.h; d is a direction, Gr = gates + 1 for a GRU, else gates.
//
// Each launch function returns a cudaError_t as int, does not synchronise and allocates nothing.
#pragma once
#include <cstdint>

#include "cuda/device/rows.h"

namespace fastrnn::cuda {

// h and c of one step from the input's and the previous step's part of the gates.
// Cost: one launch, bound by memory: for each unit and row 2G+1 values read (rec, h and c mostly from the
// L2, as the product before has just left them there), 2 to S+4 written.
//
// A row that does not run at the step is left alone, in every tensor.
//
// Aliasing: gates may be gx itself with the same row stride (each thread reads its own elements before
// it overwrites them); c, h_state are read and written in place; everything else is apart.
struct ForwardStep {
  StepRows rows;
  RowTable table;
  const void* gx = nullptr;  // (D,N,G*H) T, rows gx_stride elements apart: x W_ih^T, no bias
  int64_t gx_stride = 0;
  const void* rec = nullptr;   // (D,B,G*H) A: h_prev W_hh^T, no bias
  const void* bias = nullptr;  // (D,Gr*H) A as made by combine_bias (device/prepare.h), or null
  void* h_state = nullptr;     // a cell that reads h_prev: (D,B,H) A, h_prev in, h out; may be h where T is A
  void* c = nullptr;           // LSTM: (D,B,H) A, c_prev in, c out
  void* h = nullptr;           // (D,B,H) T out: the next product's operand (before the projection if any)
  void* y = nullptr;           // (N,D*H) T out; null with a projection
  void* gates = nullptr;       // (D,N,S*H) T out; null: not saved
  void* cells = nullptr;       // (D,N,H) A out; null: not saved
};
int forward_step(const StepShape& shape, const ForwardStep& step, void* stream);

// Gradient of the gates of one step from the gradient that reaches its h and c.
//
// The gradient of h is the sum of grad_y (this step's output), dh (from the later step through the
// recurrent product) and direct (from the later step past it: GRU's z*dh). `previous` are the rows of the
// step before this one in the direction's own time; a row that does not run there starts from h0/c0. Nothing
// passes between two steps where a new sequence begins. A row that does not run at this step keeps its gradients:
// dh, which the next product overwrites, joins direct.
//
// dgates is written in the order of the cell's gates, except for the GRU: n, r, z, rec. The columns
// 0..3H then are the gradient of the input's part and H..4H that of the recurrent part in torch's order
// r, z, n: each a contiguous operand for the products, with no value stored twice.
//
// Cost: one launch, bound by memory: for each unit and row S+5 values read at most, Gr+2 written.
//
// Aliasing: dgates may be gates (each thread reads its own elements before it overwrites them); dc and
// direct are updated in place; everything else is apart.
struct BackwardStep {
  StepRows rows, previous;
  RowTable table;
  const void* gates = nullptr;       // (D,N,S*H) T as saved by forward; LSTM, GRU
  const void* cells = nullptr;       // (D,N,H) A; LSTM
  const void* c0 = nullptr;          // (D,B,H) T; LSTM
  const void* y = nullptr;           // (N,D*H) T; GRU, RNN
  const void* h0 = nullptr;          // (D,B,H) T; GRU
  const void* grad_y = nullptr;      // (N,D*H) T, or null: zero (or already part of dh)
  const void* grad_cells = nullptr;  // (D,N,H) A, of every step's c, or null: zero; LSTM
  const void* dh = nullptr;          // (D,B,H) A
  bool dh_is_whole = false;          // with a projection: dh is the gradient of this step's h, output included
  void* direct = nullptr;            // (D,B,H) A; null: a cell without one whose rows all run
  void* dc = nullptr;                // LSTM: (D,B,H) A: gradient of c in, of c_prev out
  void* dgates = nullptr;            // (D,N,Gr*H) T out
  void* m = nullptr;                 // LSTM: (D,N,H) T out: h before the projection; null: not wanted
};
int backward_step(const StepShape& shape, const BackwardStep& step, void* stream);

// The saved gates of every step at once, in place: pre (D,N,S*H) T holds the products, for the LSTM
// x W_ih^T + h_prev W_hh^T, for the GRU r and z likewise, then x W_in^T and h_prev W_hn^T apart; no bias.
// bias as in ForwardStep. LSTM and GRU. Cost: one launch, 4 values read and written for each unit and row.
int activate_gates(const StepShape& shape, void* pre, const void* bias, void* stream);

// Around the projection of an LSTM (P units a row), the output's half of the state stage:
// y (N,D*P) T, the step's rows, and hn (D,B,P) T = h (D,B,P) T. Rows that do not run are left alone. h_state (D,B,P)
// A as in ForwardStep, where the stage keeps a part of h_prev, else null.
int store_output(const StepShape& shape, const StepRows& rows, const RowTable& table, int64_t P, const void* h,
                 void* h_state, void* y, void* hn, void* stream);
// out (D,N,P) T, the step's rows = grad_y (N,D*P) T (null: zero) + dh (D,B,P) A + direct (D,B,P) A (null: zero),
// which it empties (but for what the state stage keeps of it); dh and direct count as zero where a new sequence
// begins at the later step. Of a row that does not run, dh joins direct.
int sum_output_gradient(const StepShape& shape, const StepRows& rows, const RowTable& table, int64_t P,
                        const void* grad_y, const void* dh, void* direct, void* out, void* stream);

// h_prev of every row of N as one operand: out (D,N,width) T = y (N,D*width) T of the step before in the direction's
// own time, h0 (D,B,width) T where the row starts, zero where a new sequence begins and beyond a row's length.
int previous_outputs(const StepShape& shape, const RowTable& table, int64_t width, const void* y, const void* h0,
                     void* out, void* stream);

// The gradient of the states before the first step: out (D,B,width) T = a A + b A (null: zero), and zero where the
// first step begins a new sequence.
int initial_gradient(const StepShape& shape, const RowTable& table, int64_t width, const void* a, const void* b,
                     void* out, void* stream);

}  // namespace fastrnn::cuda
