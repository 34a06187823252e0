// Long short-term memory, torch.nn.LSTM's equations (Hochreiter & Schmidhuber 1997, forget gate of
// Gers et al. 2000), gate order i, f, g, o:
//     i = sigmoid(pre_i)  f = sigmoid(pre_f)  g = tanh(pre_g)  o = sigmoid(pre_o)
//     c = f * c_prev + i * g        h = o * tanh(c)
// With a projection the recurrence goes on with W_hr h; that product is the state stage's, and the time loop makes
// it.
#pragma once
#include "cells/cell.h"

namespace fastrnn {

template <class M>
struct LstmCell : PlainStages<M> {
  using V = typename M::V;
  static constexpr int kGates = 4;
  static constexpr int kSaved = 4;  // i, f, g, o
  static constexpr bool kHasCell = true;
  static constexpr bool kSplit = WholeProduct::kSplit;

  static FASTRNN_HD void forward(const V* pre, V /*rec*/, V /*h_prev*/, V c_prev, V* saved, V& c, V& h) {
    saved[0] = M::sigmoid(pre[0]);
    saved[1] = M::sigmoid(pre[1]);
    saved[2] = M::tanh(pre[2]);
    saved[3] = M::sigmoid(pre[3]);
    c = saved[1] * c_prev + saved[0] * saved[2];
    h = output(saved, c);
  }

  static FASTRNN_HD V output(const V* saved, V c) { return saved[3] * M::tanh(c); }

  static FASTRNN_HD void backward(const V* saved, V c_prev, V c, V /*h_prev*/, V /*h*/, V dh, V dc, V* dpre,
                                  V& /*drec*/, V& dc_prev, V& dh_prev) {
    const V one = M::set(1), i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = M::tanh(c);
    const V dct = dc + dh * o * (one - tanh_c * tanh_c);
    dpre[0] = dct * g * i * (one - i);
    dpre[1] = dct * c_prev * f * (one - f);
    dpre[2] = dct * i * (one - g * g);
    dpre[3] = dh * tanh_c * o * (one - o);
    dc_prev = dct * f;
    dh_prev = M::set(0);
  }
};

}  // namespace fastrnn
