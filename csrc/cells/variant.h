// What a layer may have that its cell by itself has not: the options of a variant, as values. The loops switch the
// policies of cells/policies/ by them, in one instance a cell beside the plain one.
#pragma once
#include "cells/host_device.h"

namespace fastrnn {

struct Variant {
  bool peephole = false;        // LSTM: i, f see c_{t-1}, o sees the candidate of c_t
  bool coupled = false;         // LSTM: f = 1 - i
  bool reset_before = false;    // GRU: the reset gate multiplies h_{t-1} before the product; two phases
  bool norm = false;            // layer norm of both products, for an LSTM of the c that h sees too
  bool zoneout_h = false;       // a part of h_{t-1} stays in h_t
  bool zoneout_c = false;       // the same of c
  bool recurrent_mask = false;  // h_{t-1} is multiplied by a mask before the product
  int heads = 1;                // blocks of a block-diagonal recurrence
  double eps = 0;               // of the norm

  constexpr FASTRNN_INLINE bool any() const {
    return peephole || coupled || reset_before || norm || zoneout_h || zoneout_c || recurrent_mask || heads > 1;
  }
};

}  // namespace fastrnn
