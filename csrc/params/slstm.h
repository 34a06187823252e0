// The plain structs of one direction of an sLSTM (cells/slstm.h): T steps, B rows, H units in heads of H/heads, whose
// recurrent weights are blocks of their own.
#pragma once
#include "params/scan.h"

namespace fastrnn {

struct SlstmShape {
  Dtype dtype = Dtype::kFloat;
  int64_t T = 0, B = 0, H = 0;
  int heads = 1;
  bool reverse = false;

  FASTRNN_INLINE int64_t head_size() const { return H / heads; }
};

// Everything in the layer's type, but for what forward saves, in the compute type.
struct SlstmInputs {
  SlstmShape shape;
  const void* w_hh = nullptr;                                    // (4*H, H/heads)
  const void* states[4] = {nullptr, nullptr, nullptr, nullptr};  // h, c, n, m (B,H); null: zeros
  const uint8_t* flags = nullptr;                                // (T,B) of StepFlags; or null
};

struct SlstmForwardParams {
  SlstmInputs in;
  TensorRows gx;                                         // (T,B,4*H): i, f, z, o
  void* y = nullptr;                                     // (T,B,H)
  void* last[4] = {nullptr, nullptr, nullptr, nullptr};  // (B,H)
  void* pre = nullptr;                                   // (T,B,4*H), the whole pre-activations; null: not saved
  void* saved = nullptr;                                 // (T,B,3*H): c, n, m of every step; with pre
};

struct SlstmBackwardParams {
  SlstmInputs in;
  const void* pre = nullptr;
  const void* saved = nullptr;
  TensorRows grad_y;                                                // (T,B,H); null: zero
  const void* grad_last[4] = {nullptr, nullptr, nullptr, nullptr};  // (B,H); null: zero
  void* grad_gx = nullptr;                                          // (T,B,4*H)
  void* grad_states[4] = {nullptr, nullptr, nullptr, nullptr};      // (B,H)
};

}  // namespace fastrnn
