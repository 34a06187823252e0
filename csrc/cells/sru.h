// Simple recurrent unit (Lei et al. 2018, "Simple Recurrent Units for Highly Parallelizable Recurrence"),
// with the equations of the public `sru` package from 2.6 on. Every product with a matrix lies outside the
// recurrence: a step gets u = (x~, f, r) of its unit and the highway input X.
//     f = sigmoid(u_f + w_f * c_prev + b_f)    r = sigmoid(u_r + w_r * c_prev + b_r)
//     c = x~ + (c_prev - x~) * f               h = X + (g(c) - X) * m * r
// g is the identity or tanh, m a dropout mask (1 without one). Both gates read c_prev.
//
// The contract is that of cell.h with other arguments, since this cell has no product to wait for:
//     kInputs    values of u: x~, f, r
//     kGates     gates, the last ones of u, each with a weight w of c_prev and a bias b
//     forward(u, w, b, x, m, c_prev, c, h)
//         w[kGates], b[kGates]   of the forget and the reset gate
//         c, h         written
//     backward(u, w, b, x, m, c_prev, dh, dc, du, dx, dc_prev)
//         dh, dc       the whole gradient that reaches this step's h and c
//         du[kInputs]  gradient of u. That of b is du of the gates, that of w the same times c_prev.
//         dx, dc_prev  gradients of X and of c_prev
// backward computes the gates again: reading u once more costs less than saving and reading them.
#pragma once
#include "cells/cell.h"

namespace fastrnn {

template <class M, bool kTanh>
struct SruCell {
  using V = typename M::V;
  static constexpr int kInputs = 3, kGates = 2;

  static FASTRNN_HD void forward(const V* u, const V* w, const V* b, V x, V m, V c_prev, V& c, V& h) {
    const V f = M::sigmoid(u[1] + (w[0] * c_prev + b[0]));
    const V r = M::sigmoid(u[2] + (w[1] * c_prev + b[1]));
    c = u[0] + (c_prev - u[0]) * f;
    h = x + (output(c) - x) * (m * r);
  }

  static FASTRNN_HD void backward(const V* u, const V* w, const V* b, V x, V m, V c_prev, V dh, V dc, V* du, V& dx,
                                  V& dc_prev) {
    const V one = M::set(1);
    const V f = M::sigmoid(u[1] + (w[0] * c_prev + b[0]));
    const V r = M::sigmoid(u[2] + (w[1] * c_prev + b[1]));
    const V kept = c_prev - u[0];
    const V g = output(u[0] + kept * f);
    const V passed = dh * (m * r);  // what h hands to g(c)
    dx = dh - passed;
    V dct = passed;
    if constexpr (kTanh) dct = dct * (one - g * g);
    dct = dct + dc;
    const V carried = dct * f, forgotten = one - f;
    du[0] = dct * forgotten;
    du[1] = carried * kept * forgotten;
    du[2] = passed * (g - x) * (one - r);
    dc_prev = carried + (du[1] * w[0] + du[2] * w[1]);
  }

 private:
  static FASTRNN_HD V output(V c) {
    if constexpr (kTanh) {
      return M::tanh(c);
    } else {
      return c;
    }
  }
};

// As a scan takes its cell: a template over the math policy.
template <class M>
using SruPlainCell = SruCell<M, false>;
template <class M>
using SruTanhCell = SruCell<M, true>;

}  // namespace fastrnn
