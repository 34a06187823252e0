// The contract of a cell: one time step of one hidden unit and its derivative.
//
// A cell is arithmetic and nothing else: no loop, no tensor, no memory. It is a template over a
// math policy M, which supplies the value type M::V (a scalar in a CUDA thread, a whole vector
// register in a CPU kernel) and the functions that the equations need, as static members:
//     V set(double), sigmoid(V), tanh(V), relu(V), positive_mask(V v, V d) = v <= 0 ? 0 : d
// NaN passes through each of them; positive_mask passes d where v is NaN, as torch's derivative of relu does.
// Backward takes derivatives from the results, 1 - y^2 and y (1 - y), and multiplies them by numbers that can be of
// any size. So where a function has converged, its result is exactly +-1 or 0 or 1, in approximate policies too.
// The same source is therefore the definition on every device.
//
// Every cell has
//     kGates      gate pre-activations a unit, in torch's order
//     kSaved      values a unit that training keeps for backward ("save gates" mode): the cell's own, then those of
//     its
//                 policies of the gates and of the state
//     kHasCell    a second state c beside h
//     kSplit      the last gate's recurrent part is kept apart from its input part (GRU: the reset
//                 gate multiplies the recurrent part alone), so it arrives as `rec` and has a
//                 gradient of its own, `drec`
//     Product, Gates, State   its policies, see below
//
//     forward(pre, rec, h_prev, c_prev, saved, c, h)
//         pre[kGates]   x W_ih^T + b_ih + h_prev W_hh^T + b_hh; for a kSplit cell pre[kGates-1]
//                       holds the input part alone
//         rec           the last gate's recurrent part, b_hh included (kSplit cells only)
//         saved, c, h   written
//
//     backward(saved, c_prev, c, h_prev, h, dh, dc, dpre, drec, dc_prev, dh_prev)
//         dh, dc        the whole gradient that reaches this step's h and c
//         dpre[kGates]  gradient of pre; for a kSplit cell dpre[kGates-1] is that of the input part
//         drec          gradient of rec (kSplit cells only)
//         dc_prev       gradient of c_prev (kHasCell only)
//         dh_prev       the part of h_prev's gradient that does not pass through the recurrent
//                       product (GRU's z * dh; zero elsewhere)
//
//     output(saved, c)  h again, which a projection has hidden (kHasCell only)
//
// Stages. A step of a layer is four of them, forward in this order, backward in the reverse one. A variant of a cell
// is a policy of a stage: a struct of arithmetic like the cell and a member type of it, never another cell or loop.
//     product  makes each unit's pre-activations from the whole h_{t-1} of its row. Where units are split, the loop
//              meets before it, so that h_{t-1} is whole; backward, before dpre becomes the gradient of h_{t-1}, so
//              that the row's dpre is whole. WholeProduct adds to the input's part, SplitProduct keeps the last
//              gate's apart.
//     gates    changes its unit's pre-activations before the cell sees them, and reads its c_{t-1}; backward turns
//              their gradient into the product's and adds to that of c_{t-1}. No meeting.
//     cell     reads pre-activations, h_{t-1} and c_{t-1} of its unit and writes its candidates for c_t and h_t;
//              backward writes the gradients of all that it read. No meeting.
//     state    makes of the candidates, c_{t-1} and h_{t-1} the c_t and h_t that the sequence goes on with and y
//              shows: of c at each hidden unit, of h at each unit of the output. A projection is this stage's own
//              product: the loop meets before it, so that the candidates are whole; backward, before it, so that the
//              gradient of the output is.
// forward_unit() and backward_unit() below are all that lies between the products, for every loop on every device.
// The output's half of the state stage stands where a loop has the output: behind the projection, if there is one.
// What needs more of its row than its unit (the sums of a norm, a second product) is one more pass over the units
// with a meeting before it: advance_stages() and retreat_stages() of cpu/rnn. The policies that layers can have are
// in policies/, switched by values (variant.h) in one instance a cell, policies/stages.h, which the CPU's loop runs
// and the GPU's (cuda/stepwise/stages.h).
//
// A policy Gates<M> has
//     kSaved      values a unit that it keeps for its backward
//     forward(at, c_prev, pre, rec, saved)
//     backward(at, saved, c_prev, dpre, drec, dc_prev)
//         dpre, drec   the cell's in, the product's out; what c_prev gets through them is added to dc_prev
// A policy State<M> has
//     kSaved      likewise
//     kKeepsC, kKeepsH   whether a part of the old c, h goes past the cell into the new one; then or with kSaved:
//     cell_forward(at, c_prev, saved, c, h)
//         c            the candidate in, c_t out; h, the candidate, is there to be saved
//     cell_backward(at, saved, c, h, dc, dc_kept)
//         c, h         c_t and h_t in; out what cell_forward found, where the cell's derivative is taken
//         dc, dc_kept  the gradient of c_t in; out that of the candidate, and what goes to c_{t-1} past the cell
//     and with kKeepsH:
//     output_forward(at, h_prev, h)
//         h            the candidate in, h_t out
//     output_backward(at, dh, dh_kept)
//         dh, dh_kept  likewise of h
// All of them are told where they are, `at`, by which a mask is found or whatever else differs from place to place.
#pragma once
#include <cstdint>

#include "cells/host_device.h"

namespace fastrnn {

// Where a stage is at work: a direction, a step and a row (of T*B, or packed N) of the tensors, and `lanes` units
// from `unit` on, of the hidden ones or of the output's. What a register holds beyond them is nobody's.
struct UnitAt {
  int direction;
  int64_t t, row, unit;
  int lanes;
};

struct WholeProduct {
  static constexpr bool kSplit = false;
};
struct SplitProduct {
  static constexpr bool kSplit = true;
};

template <class M>
struct PlainGates {
  using V = typename M::V;
  static constexpr int kSaved = 0;
  static FASTRNN_HD void forward(const UnitAt&, V /*c_prev*/, V* /*pre*/, V& /*rec*/, V* /*saved*/) {}
  static FASTRNN_HD void backward(const UnitAt&, const V* /*saved*/, V /*c_prev*/, V* /*dpre*/, V& /*drec*/,
                                  V& /*dc_prev*/) {}
};

template <class M>
struct PlainState {
  static constexpr int kSaved = 0;
  static constexpr bool kKeepsC = false, kKeepsH = false;
};

// The stages of a cell without variants. A cell names what it has instead.
template <class M>
struct PlainStages {
  using Product = WholeProduct;
  using Gates = PlainGates<M>;
  using State = PlainState<M>;
  static constexpr bool kVariant = false;  // see cells/policies/stages.h
};

// A cell with other policies of the gates and of the state: WithPolicies<LstmCell, Peek, PlainState>::Of is one.
template <template <class> class Cell, template <class> class GatesOf, template <class> class StateOf>
struct WithPolicies {
  template <class M>
  struct Of : Cell<M> {
    using Gates = GatesOf<M>;
    using State = StateOf<M>;
    static constexpr int kSaved = Cell<M>::kSaved + Gates::kSaved + State::kSaved;
  };
};

// Whether a cell or its state stage reads h of its unit a step before, whose gradient then in part goes past the
// product.
template <class C>
inline constexpr bool kReadsH = C::kSplit || C::State::kKeepsH;
// Whether a cell's derivative needs h, which nothing that it saves holds.
template <class C>
inline constexpr bool kNeedsOutput = C::kSaved == C::Gates::kSaved + C::State::kSaved;

// From the product to the candidate of h: gates, cell, and c's half of the state stage.
template <class C, class V>
FASTRNN_HD void forward_unit(const UnitAt& at, V* pre, V rec, V h_prev, V c_prev, V* saved, V& c, V& h) {
  constexpr int kState = C::kSaved - C::State::kSaved, kGates = kState - C::Gates::kSaved;
  C::Gates::forward(at, c_prev, pre, rec, saved + kGates);
  C::forward(pre, rec, h_prev, c_prev, saved, c, h);
  if constexpr (C::State::kKeepsC || C::State::kSaved > 0) C::State::cell_forward(at, c_prev, saved + kState, c, h);
}

// The way back. dh is that of the candidate of h, dc that of c_t. c becomes the cell's candidate, of which output()
// makes that of h.
template <class C, class V>
FASTRNN_HD void backward_unit(const UnitAt& at, const V* saved, V c_prev, V& c, V h_prev, V h, V dh, V dc, V* dpre,
                              V& drec, V& dc_prev, V& dh_prev) {
  constexpr int kState = C::kSaved - C::State::kSaved, kGates = kState - C::Gates::kSaved;
  V dc_kept{};
  if constexpr (C::State::kKeepsC || C::State::kSaved > 0) {
    C::State::cell_backward(at, saved + kState, c, h, dc, dc_kept);
  }
  C::backward(saved, c_prev, c, h_prev, h, dh, dc, dpre, drec, dc_prev, dh_prev);
  C::Gates::backward(at, saved + kGates, c_prev, dpre, drec, dc_prev);
  if constexpr (C::State::kKeepsC) dc_prev += dc_kept;
}

}  // namespace fastrnn
