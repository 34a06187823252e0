// Which rows of a layer run at which step, as kernels see it. d is a direction; letters as in params/rnn.h.
#pragma once
#include <cstdint>

#include "cells/cell.h"
#include "params/rnn.h"

namespace fastrnn::cuda {

// The rows that a step works on, in each direction: `count` rows from row `first` of the direction's N, which are
// its batch rows from 0 at the tensors' step `t`, -1 where there is none. Bidirectional layers do both directions in
// one launch: step t of one with step T-1-t of the other.
struct StepRows {
  int64_t t[2] = {0, 0};
  int64_t first[2] = {0, 0};
  int64_t count[2] = {0, 0};

  // The same rows in the (D,B,.) buffers: as many, from the first.
  StepRows of_states() const { return {.count = {count[0], count[1]}}; }
};

// Which rows run at which step, on the device. Null pointers: a padded sequence whose rows all take T steps.
// t is a step of the tensors, d a direction, b a batch row.
struct RowTable {
  int64_t T = 0, B = 0;
  const int64_t* row_offsets = nullptr;  // (T+1): packed, row b of step t is row_offsets[t] + b of N; else t*B + b
  const int64_t* lengths = nullptr;      // (B): row b runs at the steps below lengths[b], in both directions
  const uint8_t* resets = nullptr;       // (T,B): nonzero where b's state does not pass between t-1 and t; padded

  FASTRNN_HD int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
  FASTRNN_HD bool runs(int64_t t, int64_t b) const { return t >= 0 && t < length(b); }
  FASTRNN_HD int64_t row(int64_t t, int64_t b) const { return (row_offsets ? row_offsets[t] : t * B) + b; }
  FASTRNN_HD bool cut(int64_t t, int64_t b) const { return resets && t < length(b) && resets[t * B + b]; }
  // Whether a new sequence begins at step t, or at the one after it, in the direction's own time.
  FASTRNN_HD bool begins(int64_t t, int d, int64_t b) const { return cut(t + d, b); }
  FASTRNN_HD bool ends(int64_t t, int d, int64_t b) const { return d ? t > 0 && cut(t, b) : cut(t + 1, b); }
};

struct StepShape {
  CellKind cell;
  Dtype dtype;
  int64_t N, B, H;
  int D;
};

}  // namespace fastrnn::cuda
