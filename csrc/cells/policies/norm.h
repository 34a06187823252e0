// Layer norm (Ba et al. 2016), a policy of the gates, and for an LSTM of the c that h sees. It needs sums over a
// whole row, so it has two halves, between which the loops meet where the units of a row are split:
//     forward    the row's mean and 1 / sqrt(variance + eps), from every part's RowPart; then each value by itself
//     backward   with e = gradient times gain, the row's means of e and of e * normalised; then each value by itself
#pragma once
#include <cstdint>

#include "cells/host_device.h"

namespace fastrnn {

// Of some of a row's values: their mean and the sum of their squared distances from it, which can be put together
// without a loss of digits (Chan et al. 1983).
template <class A>
struct RowPart {
  A mean, squares;
};
template <class A>
struct RowMoments {
  A mean, scale;  // scale: 1 / sqrt(variance + eps)
};

// Puts parts together, in the order in which they are added.
struct RowSum {
  double count, mean, squares;  // of none: zeros

  template <class A>
  FASTRNN_HD void add(const RowPart<A>& part, double n) {
    if (n == 0) return;
    const double away = static_cast<double>(part.mean) - mean, all = count + n;
    squares += static_cast<double>(part.squares) + away * away * (count * n / all);
    mean += away * (n / all);
    count = all;
  }
  template <class A>
  FASTRNN_HD RowMoments<A> moments(double eps) const {
    return {static_cast<A>(mean), static_cast<A>(1 / __builtin_sqrt(squares / count + eps))};
  }
};

template <class V>
FASTRNN_HD V normalised(V value, V mean, V scale) {
  return (value - mean) * scale;
}
// e is the gradient of the normalised value, mean_e and mean_product the row's means of e and of e * normalised.
template <class V>
FASTRNN_HD V norm_backward(V e, V normal, V scale, V mean_e, V mean_product) {
  return scale * (e - mean_e - normal * mean_product);
}

}  // namespace fastrnn
