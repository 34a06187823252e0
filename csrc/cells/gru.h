// Gated recurrent unit, torch.nn.GRU's equations (Cho et al. 2014, with the reset gate applied after
// the recurrent product), gate order r, z, n:
//     r = sigmoid(pre_r)  z = sigmoid(pre_z)  n = tanh(pre_n + r * rec)
//     h = (1 - z) * n + z * h_prev
// where rec = h_prev R_n^T + b_hn.
#pragma once
#include "cells/cell.h"

namespace fastrnn {

template <class M>
struct GruCell : PlainStages<M> {
  using V = typename M::V;
  using Product = SplitProduct;
  static constexpr int kGates = 3;
  static constexpr int kSaved = 4;  // r, z, n, rec
  static constexpr bool kHasCell = false;
  static constexpr bool kSplit = Product::kSplit;

  static FASTRNN_HD void forward(const V* pre, V rec, V h_prev, V /*c_prev*/, V* saved, V& /*c*/, V& h) {
    saved[0] = M::sigmoid(pre[0]);
    saved[1] = M::sigmoid(pre[1]);
    saved[2] = M::tanh(pre[2] + saved[0] * rec);
    saved[3] = rec;
    h = saved[2] + saved[1] * (h_prev - saved[2]);
  }

  static FASTRNN_HD void backward(const V* saved, V /*c_prev*/, V /*c*/, V h_prev, V /*h*/, V dh, V /*dc*/, V* dpre,
                                  V& drec, V& /*dc_prev*/, V& dh_prev) {
    const V one = M::set(1), r = saved[0], z = saved[1], n = saved[2], rec = saved[3];
    const V dn = dh * (one - z) * (one - n * n);
    dpre[0] = dn * rec * r * (one - r);
    dpre[1] = dh * (h_prev - n) * z * (one - z);
    dpre[2] = dn;
    drec = dn * r;
    dh_prev = dh * z;
  }
};

}  // namespace fastrnn
