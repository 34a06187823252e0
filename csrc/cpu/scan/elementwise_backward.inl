// The backward pass of the recurrences of cells/elementwise.h: the gradient of the state goes through time the other
// way, and h of the step before is read from the output. Bytes a column and step: (kInputs + 2) e in, kInputs e out.
//
// The gradient of a weight is a sum over all rows and steps: a worker adds up in floats what stays in the L1 cache,
// and moves that into sums in double now and then, as a long float sum would lose digits.
#pragma once
#include "cpu/scan/elementwise.inl"

namespace fastrnn {
namespace {

template <class T, Dtype kDtype, template <class> class CellOf>
class ElementwiseBackward : Elementwise<T, kDtype, CellOf> {
  using Base = Elementwise<T, kDtype, CellOf>;
  friend Base;
  using Base::arena_, Base::e_, Base::s_;
  using typename Base::Cell;
  using typename Base::S;
  using typename Base::V;
  using typename Base::Visit;
  using typename Base::Work;
  static constexpr int64_t kRowsInFloat = 64;

 public:
  ElementwiseBackward(const ElementwiseBackwardParams& params, const ElementwisePlan& plan, char* workspace)
      : Base(params.in, plan, workspace), p_(params), weighs_(Cell::kWeights > 0 && params.grad_weight) {
    block_ = arena_.template take<T>(weighs_ ? plan.workers() * this->widest() : 0);
    rows_in_block_ = arena_.template take<int64_t>(weighs_ ? plan.workers() : 0);
    sums_ = arena_.template take<double>(weighs_ ? plan.batch_groups * s_.O : 0);
    stream_ = true;
    for (int k = 0; k < Cell::kInputs; ++k) {
      const TensorRows& to = p_.grad_inputs[k];
      const int64_t bytes = Base::W * static_cast<int64_t>(size_of(kDtype));
      const auto aligned = [&](int64_t stride) {
        return stride * static_cast<int64_t>(size_of(kDtype)) % bytes == 0;
      };
      stream_ =
          stream_ && this->may_stream(to.data, size_of(kDtype)) && aligned(to.step_stride) && aligned(to.row_stride);
    }
  }

  size_t workspace_bytes() const { return arena_.used; }
  int workers() const { return this->shares_.all_workers(); }
  static void body(int64_t begin, int64_t end, void* self) {
    auto& pass = *static_cast<ElementwiseBackward*>(self);
    pass.run(pass, static_cast<int>(begin), static_cast<int>(end));
  }
  // What is left when all workers are done.
  void finish() const {
    if (!weighs_) return;
    for (int64_t i = 0; i < s_.O; ++i) {
      double sum = 0;
      for (int g = 0; g < this->shares_.batch_groups; ++g) sum += sums_[g * s_.O + i];
      store_as<T>(p_.grad_weight, i, S::broadcast(static_cast<T>(sum)), 1, kDtype);
    }
  }

 private:
  bool descending() const { return !e_.reverse; }
  const void* first_state() const { return p_.grad_last; }
  void* last_state() const { return p_.grad_h0; }

  void begin_segment(int rank, const Segment& segment, Work& work) {
    if (!weighs_) return;
    work.sums = block_ + rank * this->widest();
    work.rows_in_sums = rows_in_block_ + rank;
    *work.rows_in_sums = 0;
    this->clear_state(work.sums, this->padded(segment.width));
    double* sums = work.total = sums_ + this->batch_group(rank) * s_.O + segment.first;
    for (int64_t j = 0; j < segment.width; ++j) sums[j] = 0;
  }
  void end_segment(int, const Segment& segment, Work& work) {
    if (weighs_) move_sums(segment, work);
  }
  void move_sums(const Segment& segment, const Work& work) {
    for (int64_t j = 0; j < segment.width; ++j) work.total[j] += static_cast<double>(work.sums[j]);
    this->clear_state(work.sums, this->padded(segment.width));
    *work.rows_in_sums = 0;
  }

  // The row of h before a step, in the scan's direction, in the layer's type; null for zeros. Beyond its length a row
  // has no h: there the first one still holds.
  const char* before(int64_t t, int64_t b) const {
    const int64_t other = e_.reverse ? t + 1 : t - 1;
    if (other >= 0 && other < s_.T && !(this->flags(0, other, b) & StepFlags::kPad)) {
      return this->row_of(p_.y, other, b);
    }
    return static_cast<const char*>(this->element(e_.scan.c0, b * s_.O));
  }

  template <Walk kWalk>
  void row(const Visit& at, const Segment& segment, const Work& work) {
    const int64_t first = segment.first, width = this->padded(segment.width);
    T* state = work.state + (at.b - work.first_row) * width;
    T* product = kWalk == Walk::kState ? work.product + (at.b - work.first_row) * width : nullptr;
    char* to[Cell::kInputs];
    const char *in[Cell::kInputs], *ahead[Cell::kInputs];
    for (int k = 0; k < Cell::kInputs; ++k) {
      to[k] = const_cast<char*>(this->row_of(p_.grad_inputs[k], at.t, at.b));
      in[k] = this->row_of(e_.inputs[k], at.t, at.b);
      ahead[k] = this->row_of(e_.inputs[k], at.ahead_t, at.ahead_b);
    }
    const uint8_t flags = this->flags(0, at.t, at.b);
    if (flags & StepFlags::kPad) {
      if constexpr (kWalk == Walk::kResults) {
        for (char* gradient : to) {
          if (gradient) this->fill_zero(gradient, first, segment.width);
        }
      }
      return;
    }
    const bool cut = flags & StepFlags::kBegins;
    const bool begins = cut || (!e_.scan.c0 && at.t == (e_.reverse ? s_.T - 1 : 0));
    const char* h_row = this->row_of(p_.y, at.t, at.b);
    const char* h_before = begins ? nullptr : before(at.t, at.b);
    const char* dh_row = this->row_of(p_.grad_y, at.t, at.b);
    const char* h_ahead = this->row_of(p_.y, at.ahead_t, at.ahead_b);
    const char* dh_ahead = this->row_of(p_.grad_y, at.ahead_t, at.ahead_b);
    const bool stream = stream_, option = this->option_;
    const T* weights = work.weights;
    T* sums = work.sums;
    this->for_vectors(segment.width, [&](int64_t j, int n) __attribute__((always_inline)) {
      const int64_t o = first + j;
      V input[Cell::kInputs], grad[Cell::kInputs], dw{}, before{};
#pragma GCC unroll 4
      for (int k = 0; k < Cell::kInputs; ++k) {
        input[k] = load_as<T>(in[k], o, n, kDtype);
        this->fetch(ahead[k], o);
      }
      if (begins) Cell::begin(input);
      V g = S::load(state + j);
      if (dh_row) {
        g += load_as<T>(dh_row, o, n, kDtype);
        this->fetch(dh_ahead, o);
      }
      if constexpr (kWalk != Walk::kResults) {
        if constexpr (Cell::kLinear) {
          const V factor = Cell::factor(input);
          S::store(state + j, cut ? V{} : factor * g);
          S::store(product + j, cut ? V{} : S::load(product + j) * factor);
        }
      } else {
        const V h = Cell::kLinear ? V{} : load_as<T>(h_row, o, n, kDtype);
        const V h_prev = h_before ? load_as<T>(h_before, o, n, kDtype) : V{};
        this->fetch(h_ahead, o);
        Cell::backward(input, Cell::kWeights ? S::load(weights + j) : V{}, option, h_prev, h, g, grad, dw, before);
        S::store(state + j, cut ? V{} : before);
#pragma GCC unroll 4
        for (int k = 0; k < Cell::kInputs; ++k) {
          if (to[k]) this->put(to[k], o, grad[k], n, stream);
        }
        if (sums) S::store(sums + j, S::load(sums + j) + dw);
      }
    });
    if (sums && ++*work.rows_in_sums == kRowsInFloat) move_sums(segment, work);
  }

  const ElementwiseBackwardParams& p_;
  const bool weighs_;
  T* block_;
  int64_t* rows_in_block_;
  double* sums_;
  bool stream_;
};

}  // namespace
}  // namespace fastrnn
