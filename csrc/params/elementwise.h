// The plain structs of the recurrences of cells/elementwise.h, on those of the SRU's scan: T, B, O = H, K = the
// cell's inputs, c0 = the first h, and the flags, a step beyond a row's length being a pad.
#pragma once
#include "params/scan.h"

namespace fastrnn {

enum class ElementwiseKind : int {
  kLinear = 0,
  kMinGru = 1,
  kMinGruLog = 2,
  kMinLstm = 3,
  kMinLstmLog = 4,
  kIndRnnTanh = 5,
  kIndRnnRelu = 6
};

struct ElementwiseFacts {
  const char* name;  // as the operators call it
  int inputs;        // values a unit and step
  bool weight;       // a recurrent weight a unit
  bool linear;       // in the state
  bool option;       // see cells/elementwise.h
};
inline constexpr ElementwiseFacts kElementwise[] = {
    {"linear", 2, false, true, false},     {"mingru", 2, false, true, false},
    {"mingru_log", 2, false, true, true},  {"minlstm", 3, false, true, false},
    {"minlstm_log", 3, false, true, true}, {"indrnn_tanh", 1, true, false, false},
    {"indrnn_relu", 1, true, false, true},
};
constexpr FASTRNN_INLINE const ElementwiseFacts& facts_of(ElementwiseKind cell) {
  return kElementwise[static_cast<int>(cell)];
}

inline constexpr int kMostInputs = 3;
// Gradients that backward is asked for, as bits.
struct ElementwiseNeeds {
  static constexpr int64_t kX = 1, kB = 2, kWeight = 4, kH0 = 8, kAll = 15;
};

struct ElementwiseInputs {
  ElementwiseKind cell = ElementwiseKind::kLinear;
  bool reverse = false;  // from the last step to the first
  bool option = false;   // the cell's, from its facts, which kernels do not ask: a table would be a symbol of theirs
  ScanInputs scan;
  TensorRows inputs[kMostInputs];  // (T,B,H) each
  const void* weight = nullptr;    // (H)
};

struct ElementwiseForwardParams {
  ElementwiseInputs in;
  void* y = nullptr;     // (T,B,H)
  void* last = nullptr;  // (B,H)
};

struct ElementwiseBackwardParams {
  ElementwiseInputs in;
  TensorRows y;                         // as written by forward
  TensorRows grad_y;                    // (T,B,H); null: zero
  const void* grad_last = nullptr;      // (B,H); null: zero
  TensorRows grad_inputs[kMostInputs];  // (T,B,H) each; this and all below: null where not wanted
  void* grad_weight = nullptr;          // (H)
  void* grad_h0 = nullptr;              // (B,H)
};

}  // namespace fastrnn
