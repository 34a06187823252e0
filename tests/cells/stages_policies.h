// Policies of the gates and of the state that no cell of the library has: each
// touches all that the contract in cells/cell.h hands it, so that a loop which
// passes something else, or at another place, gives other numbers.
#pragma once
#include <type_traits>

#include "cells/cell.h"

namespace fastrnn::stages {

// A number between 0 and 1 for each lane, another one for each place.
template <class V>
FASTRNN_HD V share_at(const UnitAt& at, int64_t salt) {
  const auto of = [&](int64_t unit) {
    return 0.05 + 0.1 * ((2 * at.t + 3 * at.row + 5 * unit + at.direction + salt) % 8);
  };
  if constexpr (std::is_arithmetic_v<V>) {
    return static_cast<V>(of(at.unit));
  } else {
    V v{};
    for (int lane = 0; lane < at.lanes; ++lane) v[lane] = of(at.unit + lane);
    return v;
  }
}

// pre_0 = tanh(pre_0 + 0.3 c_prev), the part apart scaled.
template <class M>
struct Squash {
  using V = typename M::V;
  static constexpr int kSaved = 1;
  static FASTRNN_HD void forward(const UnitAt& at, V c_prev, V* pre, V& rec, V* saved) {
    saved[0] = pre[0] = M::tanh(pre[0] + M::set(0.3) * c_prev);
    rec = rec * share_at<V>(at, 1);
  }
  static FASTRNN_HD void backward(const UnitAt& at, const V* saved, V, V* dpre, V& drec, V& dc_prev) {
    dpre[0] = dpre[0] * (M::set(1) - saved[0] * saved[0]);
    dc_prev = dc_prev + M::set(0.3) * dpre[0];
    drec = drec * share_at<V>(at, 1);
  }
};

// Without anything saved: pre_1 += 0.3 c_prev.
template <class M>
struct Peek {
  using V = typename M::V;
  static constexpr int kSaved = 0;
  static FASTRNN_HD void forward(const UnitAt&, V c_prev, V* pre, V&, V*) { pre[1] = pre[1] + M::set(0.3) * c_prev; }
  static FASTRNN_HD void backward(const UnitAt&, const V*, V, V* dpre, V&, V& dc_prev) {
    dc_prev = dc_prev + M::set(0.3) * dpre[1];
  }
};

// h_t = k h_{t-1} + (1 - k) of the candidate.
template <class M>
struct KeepH {
  using V = typename M::V;
  static constexpr int kSaved = 0;
  static constexpr bool kKeepsC = false, kKeepsH = true;
  static FASTRNN_HD void output_forward(const UnitAt& at, V h_prev, V& h) {
    h = h + share_at<V>(at, 2) * (h_prev - h);
  }
  static FASTRNN_HD void output_backward(const UnitAt& at, V& dh, V& dh_kept) {
    dh_kept = share_at<V>(at, 2) * dh;
    dh = dh - dh_kept;
  }
};

// The same where the cell's derivative needs its own h.
template <class M>
struct KeepSavedH : KeepH<M> {
  using V = typename M::V;
  static constexpr int kSaved = 1;
  static FASTRNN_HD void cell_forward(const UnitAt&, V, V* saved, V&, V& h) { saved[0] = h; }
  static FASTRNN_HD void cell_backward(const UnitAt&, const V* saved, V&, V& h, V&, V&) { h = saved[0]; }
};

// Of c and h, each with its own k.
template <class M>
struct KeepBoth : KeepH<M> {
  using V = typename M::V;
  static constexpr int kSaved = 1;
  static constexpr bool kKeepsC = true;
  static FASTRNN_HD void cell_forward(const UnitAt& at, V c_prev, V* saved, V& c, V&) {
    saved[0] = c;
    c = c + share_at<V>(at, 4) * (c_prev - c);
  }
  static FASTRNN_HD void cell_backward(const UnitAt& at, const V* saved, V& c, V&, V& dc, V& dc_kept) {
    c = saved[0];
    dc_kept = share_at<V>(at, 4) * dc;
    dc = dc - dc_kept;
  }
};

}  // namespace fastrnn::stages
