// The forward pass of the recurrences of cells/elementwise.h. Bytes a column and step, e bytes an element: kInputs e
// in, e out.
#pragma once
#include "cpu/scan/elementwise.inl"

namespace fastrnn {
namespace {

template <class T, Dtype kDtype, template <class> class CellOf>
class ElementwiseForward : Elementwise<T, kDtype, CellOf> {
  using Base = Elementwise<T, kDtype, CellOf>;
  friend Base;
  using Base::arena_, Base::e_, Base::s_;
  using typename Base::Cell;
  using typename Base::S;
  using typename Base::V;
  using typename Base::Visit;
  using typename Base::Work;

 public:
  ElementwiseForward(const ElementwiseForwardParams& params, const ElementwisePlan& plan, char* workspace)
      : Base(params.in, plan, workspace), p_(params), stream_(this->may_stream(params.y, size_of(kDtype))) {}

  size_t workspace_bytes() const { return arena_.used; }
  int workers() const { return this->shares_.all_workers(); }
  static void body(int64_t begin, int64_t end, void* self) {
    auto& pass = *static_cast<ElementwiseForward*>(self);
    pass.run(pass, static_cast<int>(begin), static_cast<int>(end));
  }
  void finish() const {}

 private:
  bool descending() const { return e_.reverse; }
  const void* first_state() const { return e_.scan.c0; }
  void* last_state() const { return p_.last; }
  void begin_segment(int, const Segment&, Work&) {}
  void end_segment(int, const Segment&, Work&) {}

  template <Walk kWalk>
  void row(const Visit& at, const Segment& segment, const Work& work) {
    const int64_t first = segment.first, width = this->padded(segment.width);
    T* state = work.state + (at.b - work.first_row) * width;
    T* product = kWalk == Walk::kState ? work.product + (at.b - work.first_row) * width : nullptr;
    void* y = this->element(p_.y, (s_.row_offset(at.t) + at.b) * s_.O);
    const uint8_t flags = this->flags(0, at.t, at.b);
    if (flags & StepFlags::kPad) {
      if constexpr (kWalk == Walk::kResults) this->fill_zero(y, first, segment.width);
      return;
    }
    const bool cut = flags & StepFlags::kBegins;
    if (cut) this->clear_state(state, width);
    if constexpr (kWalk == Walk::kState) {
      if (cut) this->clear_state(product, width);
    }
    const bool begins = cut || (!e_.scan.c0 && at.t == (e_.reverse ? s_.T - 1 : 0));
    const char *in[Cell::kInputs], *ahead[Cell::kInputs];
    for (int k = 0; k < Cell::kInputs; ++k) {
      in[k] = this->row_of(e_.inputs[k], at.t, at.b);
      ahead[k] = this->row_of(e_.inputs[k], at.ahead_t, at.ahead_b);
    }
    const bool stream = stream_, option = this->option_;
    const T* weights = work.weights;
    this->for_vectors(segment.width, [&](int64_t j, int n) __attribute__((always_inline)) {
      const int64_t o = first + j;
      V input[Cell::kInputs];
#pragma GCC unroll 4
      for (int k = 0; k < Cell::kInputs; ++k) {
        input[k] = load_as<T>(in[k], o, n, kDtype);
        this->fetch(ahead[k], o);
      }
      if (begins) Cell::begin(input);
      const V h = Cell::forward(input, Cell::kWeights ? S::load(weights + j) : V{}, option, S::load(state + j));
      S::store(state + j, h);
      if constexpr (kWalk == Walk::kResults) {
        this->put(y, o, h, n, stream);
      } else {
        S::store(product + j, S::load(product + j) * Cell::factor(input));
      }
    });
  }

  const ElementwiseForwardParams& p_;
  bool stream_;
};

}  // namespace
}  // namespace fastrnn
