// The cells whose recurrence has a product: the one list of them. `kCells` is in the order of CellKind; the kernels
// assert that the numbers are those of the structs beside this file, and Python compares its own list with it.
#pragma once
#include <cstdint>

#include "cells/host_device.h"

namespace fastrnn {

enum class CellKind : int { kLstm = 0, kGru = 1, kRnnTanh = 2, kRnnRelu = 3 };

struct CellFacts {
  const char* name;  // as the operators call it
  int gates;         // pre-activations a unit
  int saved;         // values a unit and step that training keeps for backward
  bool has_cell;     // a second state c beside h
  bool split;        // the last gate's recurrent part is kept apart, see cell.h
};
inline constexpr CellFacts kCells[] = {
    {"lstm", 4, 4, true, false},
    {"gru", 3, 4, false, true},
    {"rnn_tanh", 1, 0, false, false},
    {"rnn_relu", 1, 0, false, false},
};

constexpr FASTRNN_INLINE const CellFacts& facts_of(CellKind cell) { return kCells[static_cast<int>(cell)]; }
constexpr FASTRNN_INLINE int gates_of(CellKind cell) { return facts_of(cell).gates; }
constexpr FASTRNN_INLINE int saved_of(CellKind cell) { return facts_of(cell).saved; }
// Gates whose recurrent part arrives by itself: one more where the last one's is kept apart.
constexpr FASTRNN_INLINE int recurrent_gates_of(CellKind cell) { return facts_of(cell).gates + facts_of(cell).split; }

}  // namespace fastrnn
