// Elman network, torch.nn.RNN's equations (Elman 1990):
//     h = tanh(pre)    or    h = relu(pre)
// The derivative needs h alone, so nothing but the output is saved.
#pragma once
#include "cells/cell.h"

namespace fastrnn {

enum class Nonlinearity { kTanh, kRelu };

template <class M, Nonlinearity kind>
struct RnnCell : PlainStages<M> {
  using V = typename M::V;
  static constexpr int kGates = 1;
  static constexpr int kSaved = 0;
  static constexpr bool kHasCell = false;
  static constexpr bool kSplit = WholeProduct::kSplit;

  static FASTRNN_HD void forward(const V* pre, V /*rec*/, V /*h_prev*/, V /*c_prev*/, V* /*saved*/, V& /*c*/, V& h) {
    if constexpr (kind == Nonlinearity::kTanh) {
      h = M::tanh(pre[0]);
    } else {
      h = M::relu(pre[0]);
    }
  }

  static FASTRNN_HD void backward(const V* /*saved*/, V /*c_prev*/, V /*c*/, V /*h_prev*/, V h, V dh, V /*dc*/,
                                  V* dpre, V& /*drec*/, V& /*dc_prev*/, V& dh_prev) {
    if constexpr (kind == Nonlinearity::kTanh) {
      dpre[0] = dh * (M::set(1) - h * h);
    } else {
      dpre[0] = M::positive_mask(h, dh);
    }
    dh_prev = M::set(0);
  }
};

template <class M>
using RnnTanhCell = RnnCell<M, Nonlinearity::kTanh>;
template <class M>
using RnnReluCell = RnnCell<M, Nonlinearity::kRelu>;

}  // namespace fastrnn
