// The half of the recurrent layers' operators that is the same on every device: what a mode may say, the checks, the
// results and their shapes, the forms that compilers and tracers take. A device gives the rest, as a struct of static
// members:
//
//   kTiers              whether its kernels have tiers and TensorFloat-32: what a mode says beside what is saved or
//                       needed
//   Scope(x)            in force for the length of a call
//   make(sizes, type, x)    a contiguous, uninitialised tensor on x's device
//   forward(in, checked, mode, results)     fills the results
//   backward(in, checked, saved, wanted, mode, grad_h0, grad_c0)     fills the states' gradients where wanted, and
//                       gives that of x and those of the weights
#pragma once
#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/rnn_args.h"
#include "params/mode.h"

namespace fastrnn {

// A forward pass's results, as the operator returns them; (0,) where there is none.
struct RnnResults {
  Tensor y;   // (T,B,D*Hout) or (N,D*Hout)
  Tensor hn;  // (D,B,Hout)
  Tensor cn;  // (D,B,H), LSTM
  bool save_gates, save_cells;
  Tensor gates;  // (D,N,saved*H)
  Tensor cells;  // (D,N,H) in the compute type

  auto all() const { return std::make_tuple(y, hn, cn, gates, cells); }
};

// Which gradients a backward pass is asked for.
struct WantedGradients {
  bool x, h0, c0, weights;
};

// Those that it found, in the order of the operator; (0,) or none where not wanted.
struct RnnGradients {
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
};

// Packed rows or padded ones, of so many features.
inline std::vector<int64_t> row_sizes(const Rows& rows, int64_t features) {
  if (rows.packed()) return {rows.rows(), features};
  return {rows.tensor_steps(), rows.B, features};
}

template <class Device>
struct RnnOperators {
  static auto forward(const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                      const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                      const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset,
                      const std::string& cell, bool bias, int64_t mode) {
    check(is_mode(mode) && mode % kModeTier <= kMostSaved, "mode: expected ",
          Device::kTiers ? "what to save, 0 to 2, and options" : "0, 1 or 2", ", got ", mode);
    const typename Device::Scope scope(x);
    const RnnArguments in{x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias};
    CheckedLayer checked;
    check_layer(checked, in);
    const LayerShape& s = checked.shape;
    const Save save = static_cast<Save>(mode % kModeTier);
    const ScalarType type = x.scalar_type(), compute = compute_type(s.dtype);
    const bool has_cell = facts_of(s.cell).has_cell;
    const bool save_gates = save == Save::kGates && saved_of(s) > 0;
    const bool save_cells = save != Save::kNothing && has_cell;
    const auto make = [&](bool wanted, std::initializer_list<int64_t> sizes, ScalarType of_type) {
      return Device::make(wanted ? sizes : std::initializer_list<int64_t>{0}, of_type, x);
    };
    const auto make_saved = [&](bool wanted, std::initializer_list<int64_t> sizes, ScalarType of_type) {
      return Device::make_saved(wanted ? sizes : std::initializer_list<int64_t>{0}, of_type, x);
    };
    const RnnResults results{.y = Device::make(row_sizes(s, s.D * s.out_size()), type, x),
                             .hn = make(true, {s.D, s.B, s.out_size()}, type),
                             .cn = make(has_cell, {s.D, s.B, s.H}, type),
                             .save_gates = save_gates,
                             .save_cells = save_cells,
                             .gates = make_saved(save_gates, {s.D, s.rows(), saved_of(s) * s.H}, type),
                             .cells = make_saved(save_cells, {s.D, s.rows(), s.H}, compute)};
    Device::forward(in, checked, mode, results);
    return results.all();
  }

  static auto backward(const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_hn,
                       const std::optional<Tensor>& grad_cn, const std::optional<Tensor>& grad_cells, const Tensor& x,
                       const Tensor& h0, const std::optional<Tensor>& c0, const std::vector<Tensor>& weights,
                       const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& lengths,
                       const std::optional<Tensor>& reset, const Tensor& y, const Tensor& gates, const Tensor& cells,
                       const std::string& cell, bool bias, int64_t mode) {
    const RnnGradients found = gradients({grad_y, grad_hn, grad_cn, grad_cells, y, gates, cells},
                                         {x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias}, mode);
    return std::make_tuple(found.x, found.h0, found.c0, found.weights);
  }

  // The gradients of the weights one by one, for compilers that take no list among the results: of kMost tensors,
  // with an empty one for each that there is not.
  template <size_t kMost>
  static auto backward_unlisted(const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_hn,
                                const std::optional<Tensor>& grad_cn, const std::optional<Tensor>& grad_cells,
                                const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                                const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                                const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset,
                                const Tensor& y, const Tensor& gates, const Tensor& cells, const std::string& cell,
                                bool bias, int64_t mode) {
    check(weights.size() <= kMost, "weights: expected at most ", kMost,
          " tensors, whose gradients are results of their own, got ", weights.size());
    const RnnGradients found = gradients({grad_y, grad_hn, grad_cn, grad_cells, y, gates, cells},
                                         {x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias}, mode);
    const auto weight = [&](size_t i) {
      return i < found.weights.size() ? found.weights[i] : Device::make({0}, x.scalar_type(), x);
    };
    return [&]<size_t... Index>(std::index_sequence<Index...>) {
      return std::make_tuple(found.x, found.h0, found.c0, weight(Index)...);
    }(std::make_index_sequence<kMost>());
  }

  // forward for programs that tracers write, which keep no gates. They may have been traced on another device: what
  // only that one's kernels have goes.
  static auto layer(const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                    const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                    const std::optional<Tensor>& lengths, const std::optional<Tensor>& reset, const std::string& cell,
                    bool bias, bool keep_cells, int64_t mode) {
    check(mode >= 0 && mode % kModeTier <= kMostSaved, "mode: expected what to save, 0 to 2, and options, got ",
          mode);
    const int64_t options = Device::kTiers ? mode - mode % kModeTier : 0;
    const Save save = keep_cells ? Save::kRecompute : Save::kNothing;
    const auto [y, hn, cn, gates, cells] =
        forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, options + static_cast<int64_t>(save));
    return std::make_tuple(y, hn, cn, cells);
  }

  // Two directions of w_ih, w_hh, b_ih, b_hh, w_hr; of a variant of its vectors as well, and the masks behind them.
  static constexpr size_t kPlainWeights = 10, kVariantWeights = 23;

 private:
  // Not every number that a mode has room for is a tier's.
  static constexpr bool is_mode(int64_t mode) {
    if (mode < 0 || mode >= (Device::kTiers ? kModeEnd : kModeTier)) return false;
    return static_cast<int>(tier_of(mode)) < kTiers;
  }
  static constexpr int64_t kMostSaved = static_cast<int64_t>(Save::kRecompute);
  static RnnGradients gradients(const SavedArguments& saved, const RnnArguments& in, int64_t mode) {
    check(is_mode(mode), "mode: expected ", Device::kTiers ? "what is needed, 0 to 15, and options" : "0 to 15",
          ", got ", mode);
    const typename Device::Scope scope(in.x);
    CheckedLayer checked;
    check_layer(checked, in);
    const LayerShape& s = checked.shape;
    check_saved(s, in.x, saved);
    // Whoever has no second state gets no gradient of one, whatever came.
    static const std::optional<Tensor> none;
    const bool has_cell = facts_of(s.cell).has_cell;
    Tensor gates = saved.gates;
    if (s.variant.any() && gates.dim() == 1) {  // a variant's steps wait for each other: forward again
      gates = std::get<3>(forward(in.x, in.h0, in.c0, in.weights, in.batch_sizes, in.lengths, in.reset, in.cell,
                                  in.bias, mode - mode % kModeTier + static_cast<int64_t>(Save::kGates)));
    }
    const SavedArguments taken{
        saved.grad_y, saved.grad_hn, has_cell ? saved.grad_cn : none, has_cell ? saved.grad_cells : none, saved.y,
        gates,        saved.cells};
    const WantedGradients wanted{.x = (mode & Needs::kX) != 0,
                                 .h0 = (mode & Needs::kH0) != 0,
                                 .c0 = has_cell && (mode & Needs::kC0),
                                 .weights = (mode & Needs::kWeights) != 0};
    const auto make = [&](bool is_wanted, std::initializer_list<int64_t> sizes) {
      return Device::make(is_wanted ? sizes : std::initializer_list<int64_t>{0}, in.x.scalar_type(), in.x);
    };
    const Tensor h0 = make(wanted.h0, {s.D, s.B, s.out_size()}), c0 = make(wanted.c0, {s.D, s.B, s.H});
    auto [x, weights] = Device::backward(in, checked, taken, wanted, mode, h0, c0);
    return {x, h0, c0, std::move(weights)};
  }
};

// An operator that takes a list has two overloads, see schema.cpp.
template <class Library, class Kernel>
void implement_with_list(Library& library, const std::string& name, Kernel kernel) {
  library.impl(name.c_str(), kernel);
  library.impl((name + ".script").c_str(), kernel);
}

template <class Device, class Library>
void implement_rnn(Library& library) {
  using Operators = RnnOperators<Device>;
  implement_with_list(library, "rnn_forward", TORCH_BOX(&Operators::forward));
  implement_with_list(library, "rnn_backward", TORCH_BOX(&Operators::backward));
  implement_with_list(library, "rnn_backward_unlisted",
                      TORCH_BOX(&Operators::template backward_unlisted<Operators::kPlainWeights>));
  implement_with_list(library, "rnn_backward_unlisted_variant",
                      TORCH_BOX(&Operators::template backward_unlisted<Operators::kVariantWeights>));
  implement_with_list(library, "rnn_layer", TORCH_BOX(&Operators::layer));
}

}  // namespace fastrnn
