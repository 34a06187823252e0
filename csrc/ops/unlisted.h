// What the forms of an operator that compilers and tracers use return: a backward pass's results one by one, a
// forward pass's without the gates.
#pragma once
#include <cstddef>
#include <tuple>
#include <utility>

namespace fastrnn {

// Two directions of w_ih, w_hh, b_ih, b_hh, w_hr.
constexpr size_t kMaxWeights = 10;

// The three gradients before the weights', then theirs; make_empty() gives a tensor (0,) for each that is missing.
template <class Backward, class MakeEmpty>
auto unlisted(const Backward& gradients, const MakeEmpty& make_empty) {
  const auto& [x, h0, c0, weights] = gradients;
  const auto weight = [&](size_t i) { return i < weights.size() ? weights[i] : make_empty(); };
  return [&]<size_t... Index>(std::index_sequence<Index...>) {
    return std::make_tuple(x, h0, c0, weight(Index)...);
  }(std::make_index_sequence<kMaxWeights>());
}

// y, hn, cn and cells of a forward pass's results.
template <class Forward>
auto outputs(const Forward& results) {
  const auto& [y, hn, cn, gates, cells] = results;
  return std::make_tuple(y, hn, cn, cells);
}

}  // namespace fastrnn
