// The sLSTM of xLSTM (Beck et al., 2024) after the contract of cell.h, with three states beside h: c, the normaliser
// n and the stabiliser m, the logarithm by which c and n are scaled down. Its math policy has exp(V) and
// log_sigmoid(V) too.
//
//     m_t = max(i, log sigmoid(f) + m),  or i where n is 0: a new sequence
//     c_t = exp(log sigmoid(f) + m - m_t) c + exp(i - m_t) tanh(z),  n_t likewise with 1 in the place of tanh(z)
//     h_t = sigmoid(o) c_t / n_t
//
// backward computes from the pre-activations again what forward had: to save it would be eight values more.
#pragma once
#include "cells/host_device.h"

namespace fastrnn {

template <class V>
struct SlstmState {
  V c, n, m;
};

template <class M>
struct SlstmCell {
  using V = typename M::V;
  using State = SlstmState<V>;
  static constexpr int kGates = 4;  // i, f, z, o

  static FASTRNN_HD V forward(const V* pre, State& s) {
    const Weights w(pre, s);
    s.c = w.staying * s.c + w.entering * M::tanh(pre[2]);
    s.n = w.staying * s.n + w.entering;
    s.m = w.m;
    return M::sigmoid(pre[3]) * s.c / s.n;
  }

  // before, after: the states that the step begins with and leaves. d: the gradient that reaches the latter, and in
  // the end that of the former.
  static FASTRNN_HD void backward(const V* pre, const State& before, const State& after, V dh, State& d, V* dpre) {
    const V zero = M::set(0), one = M::set(1);
    const Weights w(pre, before);
    const V z = M::tanh(pre[2]), o = M::sigmoid(pre[3]);
    const V mean = after.c / after.n, of_mean = dh * o;
    const V dc = d.c + of_mean / after.n, dn = d.n - of_mean * mean / after.n;
    dpre[2] = dc * w.entering * (one - z * z);
    dpre[3] = dh * mean * (o * (one - o));
    // Of the exponents; the one of what stays is held to 0 where a new sequence begins.
    const V of_entering = (dc * z + dn) * w.entering;
    const V held = (dc * before.c + dn * before.n) * w.staying;
    const V of_staying = w.kept > w.m ? zero : held;
    const V dm = d.m - of_entering - of_staying;
    // The larger one makes m; of two that are equal each a half, as of torch.maximum.
    const V larger = pre[0] == w.kept ? dm * M::set(0.5) : zero;
    const V to_i = w.begins ? dm : pre[0] > w.kept ? dm : larger;
    const V to_kept = w.begins ? zero : pre[0] < w.kept ? dm : larger;
    dpre[0] = of_entering + to_i;
    d.m = of_staying + to_kept;
    dpre[1] = d.m * M::sigmoid(-pre[1]);
    d.c = dc * w.staying;
    d.n = dn * w.staying;
  }

 private:
  struct Weights {
    decltype(V{} == V{}) begins;
    V kept, m, entering, staying;
    FASTRNN_HD Weights(const V* pre, const State& s) : begins(s.n == M::set(0)) {
      kept = s.m + M::log_sigmoid(pre[1]);
      const V larger = pre[0] > kept ? pre[0] : pre[0] != pre[0] ? pre[0] : kept;  // NaN if one is
      m = begins ? pre[0] : larger;
      entering = M::exp(pre[0] - m);
      const V down = kept - m;
      staying = M::exp(down > M::set(0) ? M::set(0) : down);
    }
  };
};

}  // namespace fastrnn
