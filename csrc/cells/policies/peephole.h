// Peepholes of an LSTM (Gers et al. 2002), a policy of the gates: diagonal weights p_i, p_f, p_o through which i and
// f see c_{t-1} and o sees the candidate of c_t, before any of it is kept back.
#pragma once
#include "cells/host_device.h"

namespace fastrnn {

struct Peephole {
  template <class V>
  static FASTRNN_HD void look_back(const V* p, V c_prev, V* pre) {
    pre[0] += p[0] * c_prev;
    pre[1] += p[1] * c_prev;
  }
  template <class V>
  static FASTRNN_HD void look_at(const V* p, V c, V* pre) {
    pre[3] += p[2] * c;
  }
  // The same of the gradients: what c and c_{t-1} get. That of p is dpre times what it multiplied.
  template <class V>
  static FASTRNN_HD void look_at_backward(const V* p, const V* dpre, V& dc) {
    dc += p[2] * dpre[3];
  }
  template <class V>
  static FASTRNN_HD void look_back_backward(const V* p, const V* dpre, V& dc_prev) {
    dc_prev += p[0] * dpre[0] + p[1] * dpre[1];
  }
};

}  // namespace fastrnn
