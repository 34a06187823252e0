// Zoneout (Krueger et al. 2016), a policy of the state: a part k of the old value stays. k is a mask of 0 and 1 in
// training, of which both give exactly one of the two values if they are finite, and its expectation afterwards.
#pragma once
#include "cells/host_device.h"

namespace fastrnn {

template <class M>
struct Zoneout {
  using V = typename M::V;
  // The candidate in, the new value out.
  static FASTRNN_HD void forward(V k, V before, V& value) { value = k * before + (M::set(1) - k) * value; }
  // The new value's gradient in; the candidate's out, and what goes to the old value past the cell.
  static FASTRNN_HD void backward(V k, V& gradient, V& kept) {
    kept = k * gradient;
    gradient = (M::set(1) - k) * gradient;
  }
};

}  // namespace fastrnn
