// The scan's backward pass; kernels.inl says how both go through memory.
//
// The gradients of weight_c and bias are sums over all rows and steps. A worker adds its rows up in a block
// that stays in the L1 cache, moves it into sums in double now and then (a long float sum would lose digits),
// and in the end the workers add up each other's sums in a fixed order.
#pragma once
#include "cpu/scan/columns.inl"

namespace fastrnn {
namespace {

template <class T, Dtype kDtype, template <class> class CellOf>
class ScanBackward : Scan<T, kDtype, CellOf> {
  using Base = Scan<T, kDtype, CellOf>;
  using Base::arena_, Base::in_, Base::plan_, Base::s_, Base::W;
  using Base::kGates, Base::kInputs;
  using typename Base::Cell;
  using typename Base::S;
  using typename Base::V;
  using typename Base::Visit;
  static constexpr int kSums = 2 * kGates;  // of weight_c's gradient, then of bias's
  static constexpr int64_t kRowsInFloat = 64;

 public:
  ScanBackward(const ScanBackwardParams& params, const ScanPlan& plan, char* workspace)
      : Base(params.in, plan, workspace), p_(params) {
    const int64_t width = this->widest();
    weights_ = arena_.template take<T>(plan.workers() * 2 * kGates * width);
    state_ = arena_.template take<T>(plan.workers() * this->rows_at_once(width) * width);
    const bool sums = p_.grad_weight_c != nullptr;
    zeros_ = arena_.template take<T>(params.in.flags_stride ? width : 0);
    if (workspace && params.in.flags_stride) this->clear_state(zeros_, width);
    block_ = arena_.template take<T>(sums ? plan.workers() * kSums * width : 0);
    sums_ = arena_.template take<double>(sums ? plan.batch_groups * kSums * s_.O : 0);
    barrier_ = arena_.template take<Barrier>(1);
    if (workspace) barrier_->reset();
    stream_u_ = this->may_stream(p_.grad_u, size_of(kDtype));
    stream_x_ = this->may_stream(p_.grad_x, size_of(kDtype));
  }

  size_t workspace_bytes() const { return arena_.used; }
  int workers() const { return plan_.workers(); }
  static void body(int64_t begin, int64_t end, void* self) {
    static_cast<ScanBackward*>(self)->run(static_cast<int>(begin), static_cast<int>(end));
  }

 private:
  void run(int begin, int end) {
    for (int r = begin; r < end; ++r) {
      work(r);
      barrier_->arrive(workers());
    }
    if (!p_.grad_weight_c) return;
    barrier_->wait(workers());  // every worker's sums are complete
    for (int r = begin; r < end; ++r) {
      const int64_t columns = kSums * s_.O;
      for (int64_t i = columns * r / workers(); i < columns * (r + 1) / workers(); ++i) {
        double sum = 0;
        for (int g = 0; g < plan_.batch_groups; ++g) sum += sums_[g * columns + i];
        const bool of_weight = i < kGates * s_.O;
        store_as<T>(of_weight ? p_.grad_weight_c : p_.grad_bias, of_weight ? i : i - kGates * s_.O,
                    S::broadcast(static_cast<T>(sum)), 1, kDtype);
      }
    }
  }

  void work(int rank) {
    const int64_t widest = this->widest();
    T* weights = weights_ + rank * 2 * kGates * widest;
    T* state = state_ + rank * this->rows_at_once(widest) * widest;
    T* block = p_.grad_weight_c ? block_ + rank * kSums * widest : nullptr;
    const int64_t rows_end = this->first_row(this->batch_group(rank) + 1);
    this->for_segments(rank, [&](const Segment& segment) {
      this->load_weights(segment, weights);
      const int64_t width = this->padded(segment.width), turn = this->rows_at_once(widest);
      bool first_move = true;
      int64_t in_block = 0;
      const auto move_block = [&] {
        if (!block) return;
        double* sums = sums_ + this->batch_group(rank) * kSums * s_.O + segment.first;
        for (int i = 0; i < kSums; ++i) {
          for (int64_t j = 0; j < segment.width; ++j) {
            const double more = in_block ? static_cast<double>(block[i * width + j]) : 0.0;
            sums[i * s_.O + j] = first_move ? more : sums[i * s_.O + j] + more;
          }
        }
        first_move = false;
        in_block = 0;
      };
      for (int64_t begin = this->first_row(this->batch_group(rank)); begin < rows_end; begin += turn) {
        const int64_t end = min_of(rows_end, begin + turn);
        this->load_state(p_.grad_c, segment, begin, end, state);
        this->for_steps(segment.direction == 0, begin, end, width, [&](const Visit& at) {
          if (!row(at, segment, weights, state + (at.b - begin) * width, block, in_block == 0)) return;
          if (++in_block == kRowsInFloat) move_block();
        });
        if (p_.grad_c0) this->store_state(state, segment, begin, end, p_.grad_c0);
      }
      if (in_block || first_move) move_block();
    });
    stream_fence();
  }

  // c before step t of row b: c of the step before in the direction's own time, null at the first step.
  const T* previous_cells(const Segment& segment, int64_t t, int64_t b) const {
    const int64_t before = segment.direction ? t + 1 : t - 1;
    if (before < 0 || before >= s_.T || b >= s_.active(before)) return nullptr;
    return static_cast<const T*>(p_.cells) + (s_.row_offset(before) + b) * s_.O + segment.first;
  }

  // False for a pad, which adds nothing to the sums. fresh: the block holds nothing yet.
  bool row(const Visit& at, const Segment& segment, const T* weights, T* state, T* block, bool fresh) {
    const int64_t first = segment.first, width = this->padded(segment.width), natural = s_.row_offset(at.t) + at.b;
    const int64_t O = s_.O;
    void* du = this->element(p_.grad_u, natural * s_.K * O);
    void* dx = this->element(p_.grad_x, natural * O);
    void* dv = this->element(p_.grad_v, natural * kGates * O);
    const T* dcells = p_.grad_cells ? static_cast<const T*>(p_.grad_cells) + natural * O + first : nullptr;
    const uint8_t flags = this->flags(segment.direction, at.t, at.b);
    const bool begins = flags & StepFlags::kBegins;
    if (flags & StepFlags::kPad) {
      if (begins) {
        this->clear_state(state, width);
      } else if (dcells) {
        this->for_vectors(segment.width, [&](int64_t j, int n) {
          S::store(state + j, S::load(state + j) + S::load_n(dcells + j, n));
        });
      }
      for (int k = 0; du && k < s_.K; ++k) this->fill_zero(du, k * O + first, segment.width);
      for (int k = 0; dv && k < kGates; ++k) this->fill_zero(dv, k * O + first, segment.width);
      if (dx) this->fill_zero(dx, first, segment.width);
      return false;
    }
    const char* u = this->row_of(in_.u, at.t, at.b);
    const char* u_ahead = this->row_of(in_.u, at.ahead_t, at.ahead_b);
    const char* x = this->row_of(in_.x, at.t, at.b);
    const char* x_ahead = this->row_of(in_.x, at.ahead_t, at.ahead_b);
    const char* v = this->row_of(in_.v, at.t, at.b);
    const char* dh_row = this->row_of(p_.grad_h, at.t, at.b);
    const char* dh_ahead = this->row_of(p_.grad_h, at.ahead_t, at.ahead_b);
    const T* cells = begins ? zeros_ : previous_cells(segment, at.t, at.b);
    const T* cells_ahead = previous_cells(segment, at.ahead_t, at.ahead_b);
    const void* c0 = this->element(in_.c0, at.b * O);
    const void* drop = this->element(in_.drop_mask, at.b * O);
    const int64_t gate = in_.u.gate_stride, v_gate = in_.v.gate_stride;
    const bool skip = s_.K == kInputs + 1, stream_u = stream_u_, stream_x = stream_x_;
    const V scale = S::set(in_.scale);
    this->for_vectors(segment.width, [&](int64_t j, int n) __attribute__((always_inline)) {
      const int64_t o = first + j;
      V input[kInputs], w[kGates], b[kGates], highway{}, grad[kInputs], grad_highway, dc;
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
      const V c_prev = cells ? S::load_n(cells + j, n) : load_as<T>(c0, o, n, kDtype);
      if (cells_ahead) __builtin_prefetch(cells_ahead + j);
      V dh{};
      if (dh_row) {
        dh = load_as<T>(dh_row, o, n, kDtype);
        this->fetch(dh_ahead, o);
      }
      V dct = S::load(state + j);
      if (dcells) dct += S::load_n(dcells + j, n);
      Cell::backward(input, w, b, highway, m, c_prev, dh, dct, grad, grad_highway, dc);
      S::store(state + j, begins ? V{} : dc);
      V more[kSums];  // the gates' inputs are the last ones
#pragma GCC unroll 4
      for (int k = 0; k < kGates; ++k) {
        more[kGates + k] = grad[kInputs - kGates + k];
        more[k] = more[kGates + k] * c_prev;
      }
      if (du) {
#pragma GCC unroll 4
        for (int k = 0; k < kInputs; ++k) this->put(du, k * O + o, grad[k], n, stream_u);
        if (skip) this->put(du, kInputs * O + o, grad_highway, n, stream_u);
      }
      if (dx) this->put(dx, o, grad_highway * scale, n, stream_x);
      if (dv) {
#pragma GCC unroll 4
        for (int k = 0; k < kGates; ++k) store_as<T>(dv, k * O + o, more[k], n, kDtype);
      }
      if (block) {
#pragma GCC unroll 4
        for (int i = 0; i < kSums; ++i) {
          T* sum = block + i * width + j;
          S::store(sum, fresh ? more[i] : S::load(sum) + more[i]);
        }
      }
    });
    return true;
  }

  const ScanBackwardParams& p_;
  T *weights_, *state_, *zeros_, *block_;
  double* sums_;
  Barrier* barrier_;
  bool stream_u_, stream_x_;
};

}  // namespace
}  // namespace fastrnn
