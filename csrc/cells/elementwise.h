// Recurrences of one state that is their output, h_t of h_{t-1} and of what comes from outside, unit by unit: the
// linear one, MinGRU and MinLSTM (Feng et al., 2024), IndRNN (Li et al., 2018). After the contract of cell.h as far
// as it goes: arithmetic over a math policy, which here also has exp(V).
//
// Every cell has
//     kInputs      values a unit and step that come from outside
//     kWeights     1 where there is a recurrent weight a unit
//     kLinear      h_t = factor(in) * h_{t-1} + something that is no function of h_{t-1}
//
//     begin(in)    what a step that begins a sequence does to its inputs: where the state is 0, a factor that is no
//                  number must not count
//     forward(in, w, option, h_prev)     h
//     backward(in, w, option, h_prev, h, g, din, dw, dh_prev)
//         option   of MinGRU and MinLSTM whether the candidate is the positive one of the log-space form, of IndRNN
//                  whether its nonlinearity is relu; a value, as one branch a register costs next to nothing
//         g        the whole gradient that reaches h
//         dw       kWeights only
//     factor(in)   kLinear only
#pragma once
#include "cells/host_device.h"

namespace fastrnn {

template <class M>
struct LinearCell {
  using V = typename M::V;
  static constexpr int kInputs = 2, kGates = 0, kWeights = 0;
  static constexpr bool kLinear = true;

  static FASTRNN_HD void begin(V* in) { in[0] = M::set(0); }
  static FASTRNN_HD V factor(const V* in) { return in[0]; }
  static FASTRNN_HD V forward(const V* in, V /*w*/, bool, V h_prev) { return in[0] * h_prev + in[1]; }
  static FASTRNN_HD void backward(const V* in, V /*w*/, bool, V h_prev, V /*h*/, V g, V* din, V& /*dw*/, V& dh_prev) {
    din[0] = g * h_prev;
    din[1] = g;
    dh_prev = in[0] * g;
  }
};

// The candidate of MinGRU and MinLSTM: as it is, or positive, v + 0.5 from 0 on and sigmoid(v) below.
template <class M>
struct Candidate {
  using V = typename M::V;
  static FASTRNN_HD V forward(V v, bool positive) {
    if (!positive) return v;
    return v >= M::set(0) ? v + M::set(0.5) : M::sigmoid(v);
  }
  static FASTRNN_HD V backward(V v, bool positive, V candidate, V d) {
    if (!positive) return d;
    return v >= M::set(0) ? d : d * (candidate * (M::set(1) - candidate));
  }
};

template <class M>
struct MinGruCell {
  using V = typename M::V;
  using C = Candidate<M>;
  static constexpr int kInputs = 2, kGates = 0, kWeights = 0;  // z, candidate
  static constexpr bool kLinear = true;

  static FASTRNN_HD void begin(V*) {}
  // 1 - sigmoid(z), which of a large z keeps its digits.
  static FASTRNN_HD V factor(const V* in) { return M::sigmoid(-in[0]); }
  static FASTRNN_HD V forward(const V* in, V /*w*/, bool positive, V h_prev) {
    return factor(in) * h_prev + M::sigmoid(in[0]) * C::forward(in[1], positive);
  }
  static FASTRNN_HD void backward(const V* in, V /*w*/, bool positive, V h_prev, V /*h*/, V g, V* din, V& /*dw*/,
                                  V& dh_prev) {
    const V a = factor(in), z = M::sigmoid(in[0]), candidate = C::forward(in[1], positive);
    din[0] = g * (candidate - h_prev) * (a * z);
    din[1] = C::backward(in[1], positive, candidate, g * z);
    dh_prev = a * g;
  }
};

template <class M>
struct MinLstmCell {
  using V = typename M::V;
  using C = Candidate<M>;
  static constexpr int kInputs = 3, kGates = 0, kWeights = 0;  // f, i, candidate
  static constexpr bool kLinear = true;

  static FASTRNN_HD void begin(V*) {}
  static FASTRNN_HD V factor(const V* in) { return Shares(in).kept; }
  static FASTRNN_HD V forward(const V* in, V /*w*/, bool positive, V h_prev) {
    const Shares s(in);
    return s.kept * h_prev + s.taken * C::forward(in[2], positive);
  }
  static FASTRNN_HD void backward(const V* in, V /*w*/, bool positive, V h_prev, V /*h*/, V g, V* din, V& /*dw*/,
                                  V& dh_prev) {
    const Shares s(in);
    const V candidate = C::forward(in[2], positive);
    const V of_share = g * (h_prev - candidate) * (s.kept * s.taken);
    din[0] = of_share * M::sigmoid(-in[0]);
    din[1] = -(of_share * M::sigmoid(-in[1]));
    din[2] = C::backward(in[2], positive, candidate, g * s.taken);
    dh_prev = s.kept * g;
  }

 private:
  // sigmoid(f) and sigmoid(i) over their sum. Both may be too small for a number: so of exp(min(x, 0)) / (1 +
  // exp(-|x|)), which is sigmoid(x), the numerators' quotient is taken as one exponential.
  struct Shares {
    V kept, taken;
    FASTRNN_HD explicit Shares(const V* in) {
      const V zero = M::set(0), one = M::set(1), f = in[0], i = in[1];
      const V low_f = f < zero ? f : zero, low_i = i < zero ? i : zero;
      const V of_f = one + M::exp(f < zero ? f : -f), of_i = one + M::exp(i < zero ? i : -i);
      const V more = low_i - low_f;
      const V up = M::exp(more < zero ? more : -more);  // never above 1: the smaller one over the larger one
      const V for_f = more < zero ? of_i : of_i * up, for_i = more < zero ? of_f * up : of_f;
      const V sum = for_f + for_i;
      kept = for_f / sum;
      taken = for_i / sum;
    }
  };
};

template <class M>
struct IndRnnCell {
  using V = typename M::V;
  static constexpr int kInputs = 1, kGates = 0, kWeights = 1;
  static constexpr bool kLinear = false;

  static FASTRNN_HD void begin(V*) {}
  static FASTRNN_HD V forward(const V* in, V w, bool relu, V h_prev) {
    const V pre = in[0] + w * h_prev;
    return relu ? M::relu(pre) : M::tanh(pre);
  }
  static FASTRNN_HD void backward(const V* /*in*/, V w, bool relu, V h_prev, V h, V g, V* din, V& dw, V& dh_prev) {
    din[0] = relu ? M::positive_mask(h, g) : g * (M::set(1) - h * h);
    dw = din[0] * h_prev;
    dh_prev = w * din[0];
  }
};

}  // namespace fastrnn
