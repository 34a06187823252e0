// The cells as the loops run them with the stages of a variant: one instance a cell, whose policies are switched by
// the layer's Variant. What needs a whole row, or a second product, stands in the loops between these functions.
//
// All have kSaved, what training keeps a unit: an RNN its candidate of h, which y need not hold.
//     update(on, p, pre, rec, h_prev, c_prev, saved, c, h)   gates and cell: saved; an LSTM the candidate of c,
//     others
//                                                            that of h. p[3]: the peephole's weights
//     update_backward(on, p, saved, c_prev, h_prev, dh, dc, dpre, drec, dc_prev, dh_prev)
//                     dc is the gradient of the candidate of c, with what came through h; dpre[3] of an LSTM is there
// An LSTM has its second half apart, which may see a c that was normalised:
//     emit(saved, seen)                               the candidate of h
//     emit_backward(saved, seen, dh, dpre, dseen)     writes dpre[3]
// A GRU with its reset before the product has two of its own, see below.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/policies/norm.h"
#include "cells/policies/peephole.h"
#include "cells/policies/zoneout.h"
#include "cells/rnn.h"
#include "cells/variant.h"

namespace fastrnn {

template <class M>
struct LstmStages : LstmCell<M> {
  using V = typename M::V;
  static constexpr bool kVariant = true;
  static constexpr int kSaved = 4;

  static FASTRNN_HD void update(const Variant& on, const V* p, V* pre, V, V, V c_prev, V* saved, V& c, V&) {
    const V one = M::set(1);
    if (on.peephole) Peephole::look_back(p, c_prev, pre);
    saved[0] = M::sigmoid(pre[0]);
    saved[1] = on.coupled ? one - saved[0] : M::sigmoid(pre[1]);
    saved[2] = M::tanh(pre[2]);
    c = saved[1] * c_prev + saved[0] * saved[2];
    if (on.peephole) Peephole::look_at(p, c, pre);
    saved[3] = M::sigmoid(pre[3]);
  }
  static FASTRNN_HD V emit(const V* saved, V seen) { return LstmCell<M>::output(saved, seen); }
  static FASTRNN_HD V candidate(const V* saved, V c_prev) { return saved[1] * c_prev + saved[0] * saved[2]; }

  static FASTRNN_HD void emit_backward(const V* saved, V seen, V dh, V* dpre, V& dseen) {
    const V one = M::set(1), o = saved[3], t = M::tanh(seen);
    dpre[3] = dh * t * o * (one - o);
    dseen = dh * o * (one - t * t);
  }
  static FASTRNN_HD void update_backward(const Variant& on, const V* p, const V* saved, V c_prev, V, V, V dc, V* dpre,
                                         V&, V& dc_prev, V& dh_prev) {
    const V one = M::set(1), i = saved[0], f = saved[1], g = saved[2];
    if (on.peephole) Peephole::look_at_backward(p, dpre, dc);
    V di = dc * g;
    const V df = dc * c_prev;
    dpre[1] = df * f * (one - f);
    if (on.coupled) {
      di = di - df;
      dpre[1] = M::set(0);
    }
    dpre[0] = di * i * (one - i);
    dpre[2] = dc * i * (one - g * g);
    dc_prev = dc * f;
    if (on.peephole) Peephole::look_back_backward(p, dpre, dc_prev);
    dh_prev = M::set(0);
  }
};

template <class M>
struct GruStages : GruCell<M> {
  using V = typename M::V;
  static constexpr bool kVariant = true;
  static constexpr int kSaved = 4;

  static FASTRNN_HD void update(const Variant&, const V*, V* pre, V rec, V h_prev, V c_prev, V* saved, V& c, V& h) {
    GruCell<M>::forward(pre, rec, h_prev, c_prev, saved, c, h);
  }
  static FASTRNN_HD void update_backward(const Variant&, const V*, const V* saved, V c_prev, V h_prev, V dh, V dc,
                                         V* dpre, V& drec, V& dc_prev, V& dh_prev) {
    GruCell<M>::backward(saved, c_prev, V{}, h_prev, V{}, dh, dc, dpre, drec, dc_prev, dh_prev);
  }

  // The reset gate before the product (Cho et al. 2014), a product of two phases: r and z of the first, whose r times
  // h is what the second one multiplies; n of its sum.
  static FASTRNN_HD void first_phase(const V* pre, V* saved) {
    saved[0] = M::sigmoid(pre[0]);
    saved[1] = M::sigmoid(pre[1]);
  }
  static FASTRNN_HD void second_phase(V pre_n, V h_prev, V* saved, V& h) {
    saved[2] = M::tanh(pre_n);
    saved[3] = M::set(0);
    h = saved[2] + saved[1] * (h_prev - saved[2]);
  }
  // Writes dpre[1] and dpre[2] = drec, and what goes to h_{t-1} past both products.
  static FASTRNN_HD void second_phase_backward(const V* saved, V h_prev, V dh, V* dpre, V& drec, V& dh_prev) {
    const V one = M::set(1), z = saved[1], n = saved[2];
    dpre[1] = dh * (h_prev - n) * z * (one - z);
    dpre[2] = drec = dh * (one - z) * (one - n * n);
    dh_prev = dh * z;
  }
  // From the gradient of r * h, h as the product saw it: dpre[0], and what that h gets.
  static FASTRNN_HD void first_phase_backward(const V* saved, V h, V d_product, V* dpre, V& dh) {
    const V r = saved[0];
    dpre[0] = d_product * h * r * (M::set(1) - r);
    dh = d_product * r;
  }
};

template <class M, Nonlinearity kind>
struct RnnStages : RnnCell<M, kind> {
  using V = typename M::V;
  static constexpr bool kVariant = true;
  static constexpr int kSaved = 1;

  static FASTRNN_HD void update(const Variant&, const V*, V* pre, V rec, V h_prev, V c_prev, V* saved, V& c, V& h) {
    RnnCell<M, kind>::forward(pre, rec, h_prev, c_prev, saved, c, h);
    saved[0] = h;
  }
  static FASTRNN_HD void update_backward(const Variant&, const V*, const V* saved, V c_prev, V h_prev, V dh, V dc,
                                         V* dpre, V& drec, V& dc_prev, V& dh_prev) {
    RnnCell<M, kind>::backward(saved, c_prev, V{}, h_prev, saved[0], dh, dc, dpre, drec, dc_prev, dh_prev);
  }
};
template <class M>
using RnnTanhStages = RnnStages<M, Nonlinearity::kTanh>;
template <class M>
using RnnReluStages = RnnStages<M, Nonlinearity::kRelu>;

}  // namespace fastrnn
