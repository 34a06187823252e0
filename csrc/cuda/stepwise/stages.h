// The kernels of a layer with stages (cells/policies/stages.h): what lies between the products of a step, where a
// policy changes it. One instance a cell and type, switched by the layer's Variant; contracts as in kernels.h.
//
// A norm needs sums over a whole row: a block takes a row then, else a piece of one. What one product makes for the
// next is laid out by heads, "by heads" below: (D,heads,B,g*H/heads) for g gates, so that a direction's products are
// one batched one.
#pragma once
#include <cstdint>

#include "cuda/device/rows.h"

namespace fastrnn::cuda {

// What both passes know of a layer. Vectors in T, contiguous, null where there is none.
struct StageLayer {
  StepShape shape;
  Variant on;
  RowTable table;
  int64_t width = 0;            // Hout
  DirectionWeights weights[2];  // of which the kernels read the vectors of a variant
  StageMasks masks;
  int64_t saved = 0;  // values a unit in `gates`: the cell's, and with a norm x' and h'
};

// Gates, cell and state of one step. With a reset before the product it ends where r * h is the second one's operand.
struct StageForward {
  StepRows rows;
  const void* gx = nullptr;  // (D,N,G*H) T, rows gx_stride apart: x W_ih^T; may lie in gates, see lay_out()
  int64_t gx_stride = 0;
  const void* rec = nullptr;        // A by heads, G gates (2 with a reset before the product): h' W_hh^T
  const void* rec_n = nullptr;      // A by heads, 1 gate: (r * h') W_hn^T
  const void* x_moments = nullptr;  // (D,N,2) A, with a norm: of the rows of gx
  const void* bias = nullptr;       // as in ForwardStep
  void* c = nullptr;                // (D,B,H) A, in and out
  void* held = nullptr;             // (D,B,2*H) A: what waits inside a step
  void* reset_h = nullptr;          // (D,B,H) T: r * h'
  void* m = nullptr;                // (D,B,H) T: the candidate of h, with a projection
  void* h_state = nullptr;          // (D,B,Hout) A, in and out; may be hn where T is A
  void* hn = nullptr;               // (D,B,Hout) T out
  void* operand = nullptr;          // (D,B,Hout) T out: h', the next product's; may be hn
  void* y = nullptr;                // (N,D*Hout) T out
  void* gates = nullptr;            // (D,N,saved*H) T out, or null
  void* cells = nullptr;            // (D,N,H) A out, or null
};
int stages_input_moments(const StageLayer& layer, const StageForward& step, void* moments, void* stream);
int stages_forward(const StageLayer& layer, const StageForward& step, void* stream);
int stages_second_phase(const StageLayer& layer, const StageForward& step, void* stream);
// The output's half of the state stage behind a projection, whose product is h (D,B,P) T.
int stages_output(const StageLayer& layer, const StageForward& step, const void* h, void* stream);

// Where the gradients of vectors lie in a row's terms, in groups of H; -1: not there.
struct StageTerms {
  int peephole = -1, norm_c = -1, norm_ih = -1, norm_hh = -1, bias_n = -1, count = 0;
};

// One step back. dh is what the products give, of h', before its mask; direct what goes past them, and what waits.
struct StageBackward {
  StepRows rows, previous;
  const void* gates = nullptr;       // as forward saved it
  const void* cells = nullptr;       // (D,N,H) A
  const void* c0 = nullptr;          // (D,B,H) T
  const void* y = nullptr;           // (N,D*H) T
  const void* h0 = nullptr;          // (D,B,Hout) T
  const void* grad_y = nullptr;      // (N,D*Hout) T, or null
  const void* grad_cells = nullptr;  // (D,N,H) A, or null
  const void* dh = nullptr;          // (D,B,Hout) A
  void* direct = nullptr;            // (D,B,Hout) A, in and out
  const void* dm = nullptr;          // (D,B,H) A with a projection: gradient of the candidate of h; else null
  void* dh_y = nullptr;              // (D,N,P) T out, with a projection: gradient of its product
  void* dc = nullptr;                // (D,B,H) A, in and out
  void* held = nullptr;              // (D,B,2*H) A
  void* dgx = nullptr;               // (D,N,G*H) T out: gradient of the gates, of the input's part
  void* dgh = nullptr;               // the same of the recurrent part; may be dgx where they do not differ
  void* operand = nullptr;           // T by heads: the recurrent part again, as the product takes it
  void* operand_n = nullptr;         // and of n's gate, where its product is one of its own
  const void* d_reset_h = nullptr;   // (D,B,H) A: gradient of r * h'
  void* m = nullptr;                 // (D,N,H) T out: h before the projection; or null
  void* terms = nullptr;             // (D,N,count*H) A out: what the vectors' gradients are sums of; or null
  StageTerms at;
};
int stages_output_gradient(const StageLayer& layer, const StageBackward& step, void* stream);
int stages_backward(const StageLayer& layer, const StageBackward& step, void* stream);
// The first phase of a reset before the product, once d_reset_h is there.
int stages_first_phase_backward(const StageLayer& layer, const StageBackward& step, void* stream);
// The norm of x's part, all rows at once: dgx in place, and its terms.
int stages_input_backward(const StageLayer& layer, const StageBackward& step, void* stream);

// h (D,B,Hout), T or (compute) A, times the recurrent mask.
int stages_mask(const StageLayer& layer, bool compute, void* h, void* stream);
// h' of every row of N as one operand (D,N,Hout) T, as previous_outputs(); and r * h', or null.
int stages_operands(const StageLayer& layer, const StageBackward& step, void* h, void* reset_h, void* stream);

}  // namespace fastrnn::cuda
