// The scan's forward pass; kernels.inl says how both go through memory.
#pragma once
#include "cpu/scan/columns.inl"

namespace fastrnn {
namespace {

template <class T, Dtype kDtype, template <class> class CellOf>
class ScanForward : Scan<T, kDtype, CellOf> {
  using Base = Scan<T, kDtype, CellOf>;
  using Base::arena_, Base::in_, Base::plan_, Base::s_, Base::W;
  using Base::kGates, Base::kInputs;
  using typename Base::Cell;
  using typename Base::S;
  using typename Base::V;
  using typename Base::Visit;

 public:
  ScanForward(const ScanForwardParams& params, const ScanPlan& plan, char* workspace)
      : Base(params.in, plan, workspace), p_(params) {
    const int64_t width = this->widest();
    weights_ = arena_.template take<T>(plan.workers() * 2 * kGates * width);
    state_ = arena_.template take<T>(plan.workers() * this->rows_at_once(width) * width);
    stream_h_ = this->may_stream(p_.h, size_of(kDtype));
    stream_cells_ = this->may_stream(p_.cells, sizeof(T));
  }

  size_t workspace_bytes() const { return arena_.used; }
  int workers() const { return plan_.workers(); }
  static void body(int64_t begin, int64_t end, void* self) {
    for (int64_t r = begin; r < end; ++r) static_cast<ScanForward*>(self)->work(static_cast<int>(r));
  }

 private:
  void work(int rank) {
    const int64_t widest = this->widest();
    T* weights = weights_ + rank * 2 * kGates * widest;
    T* state = state_ + rank * this->rows_at_once(widest) * widest;
    const int64_t rows_end = this->first_row(this->batch_group(rank) + 1);
    this->for_segments(rank, [&](const Segment& segment) {
      this->load_weights(segment, weights);
      const int64_t width = this->padded(segment.width), turn = this->rows_at_once(widest);
      for (int64_t begin = this->first_row(this->batch_group(rank)); begin < rows_end; begin += turn) {
        const int64_t end = min_of(rows_end, begin + turn);
        this->load_state(in_.c0, segment, begin, end, state);
        this->for_steps(segment.direction == 1, begin, end, width,
                        [&](const Visit& at) { row(at, segment, weights, state + (at.b - begin) * width); });
        this->store_state(state, segment, begin, end, p_.c);
      }
    });
    stream_fence();
  }

  void row(const Visit& at, const Segment& segment, const T* weights, T* state) {
    const int64_t first = segment.first, width = this->padded(segment.width), natural = s_.row_offset(at.t) + at.b;
    void* h = this->element(p_.h, natural * s_.O);
    T* cells = p_.cells ? static_cast<T*>(p_.cells) + natural * s_.O + first : nullptr;
    const uint8_t flags = this->flags(segment.direction, at.t, at.b);
    if (flags & StepFlags::kBegins) this->clear_state(state, width);
    if (flags & StepFlags::kPad) {
      this->fill_zero(h, first, segment.width);
      if (cells) {
        this->for_vectors(segment.width, [&](int64_t j, int n) { S::store_n(cells + j, S::load(state + j), n); });
      }
      return;
    }
    const char* u = this->row_of(in_.u, at.t, at.b);
    const char* u_ahead = this->row_of(in_.u, at.ahead_t, at.ahead_b);
    const char* x = this->row_of(in_.x, at.t, at.b);
    const char* x_ahead = this->row_of(in_.x, at.ahead_t, at.ahead_b);
    const char* v = this->row_of(in_.v, at.t, at.b);
    const void* drop = this->element(in_.drop_mask, at.b * s_.O);
    const int64_t gate = in_.u.gate_stride, v_gate = in_.v.gate_stride;
    const bool skip = s_.K == kInputs + 1, stream_h = stream_h_, stream_cells = stream_cells_;
    const V scale = S::set(in_.scale);
    this->for_vectors(segment.width, [&](int64_t j, int n) __attribute__((always_inline)) {
      const int64_t o = first + j;
      V input[kInputs], w[kGates], b[kGates], highway{}, c, out;
#pragma GCC unroll 4
      for (int k = 0; k < kInputs; ++k) {
        input[k] = load_as<T>(u, k * gate + o, n, kDtype);
        this->fetch(u_ahead, k * gate + o);
      }
      if (skip) {
        highway = load_as<T>(u, kInputs * gate + o, n, kDtype);
        this->fetch(u_ahead, kInputs * gate + o);
      } else if (x) {
        highway = scale * load_as<T>(x, o, n, kDtype);
        this->fetch(x_ahead, o);
      }
#pragma GCC unroll 4
      for (int k = 0; k < kGates; ++k) {
        w[k] = S::load(weights + k * width + j);
        b[k] = S::load(weights + (kGates + k) * width + j);
        if (v) w[k] += load_as<T>(v, k * v_gate + o, n, kDtype);
      }
      const V m = drop ? load_as<T>(drop, o, n, kDtype) : S::set(1);
      Cell::forward(input, w, b, highway, m, S::load(state + j), c, out);
      S::store(state + j, c);
      this->put(h, o, out, n, stream_h);
      if (cells) this->put_cell(cells + j, c, n, stream_cells);
    });
  }

  const ScanForwardParams& p_;
  T *weights_, *state_;
  bool stream_h_, stream_cells_;
};

}  // namespace
}  // namespace fastrnn
