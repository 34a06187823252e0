// The sLSTM's backward pass. A step of a head: the cell's derivative makes the gradient of the pre-activations, and
// the product with the recurrent weights that of h of the step before. That of the weights is one product over all
// steps, which is left to whoever has grad_gx and y.
#pragma once
#include "cpu/rnn/slstm.inl"

namespace fastrnn {
namespace {

template <class T>
class SlstmBackward : Slstm<T> {
  using Base = Slstm<T>;
  using Base::arena_, Base::in_, Base::s_, Base::units_, Base::G, Base::W;
  using typename Base::Cell;
  using typename Base::S;
  using typename Base::State;
  using typename Base::V;
  static constexpr int kRows = tile_rows(kPanelVectors);

 public:
  SlstmBackward(const SlstmBackwardParams& params, const SlstmPlan& plan, char* workspace)
      : Base(params.in, plan, workspace), p_(params), columns_{units_.length, kPanelVectors} {
    const int64_t workers = plan.workers(), width = this->padded();
    weights_size_ = G * units_.length * width;
    weights_ = arena_.template take<T>(workers * weights_size_);
    rows_size_ = spread_rows(this->most_rows()) * width;
    dpre_ = arena_.template take<T>(workers * G * rows_size_);
    state_ = arena_.template take<T>(workers * 4 * rows_size_);
  }

  size_t workspace_bytes() const { return arena_.used; }
  static void body(int64_t begin, int64_t end, void* self) {
    for (int64_t r = begin; r < end; ++r) static_cast<SlstmBackward*>(self)->work(static_cast<int>(r));
  }

 private:
  void work(int rank) {
    const int64_t begin = this->first_row(this->batch_group(rank));
    const int64_t rows = this->first_row(this->batch_group(rank) + 1) - begin;
    if (rows == 0) return;
    const int last = this->first_head(this->head_group(rank) + 1);
    for (int head = this->first_head(this->head_group(rank)); head < last; ++head) walk(rank, head, begin, rows);
  }

  // The weights of a gate's panel of columns.
  T* panel_of(T* weights, int g, int64_t panel) const {
    const int64_t K = units_.length;
    return weights + K * (g * this->padded() + columns_.first_block(panel) * W);
  }

  void walk(int rank, int head, int64_t begin, int64_t rows) {
    const int64_t K = units_.length, stride = spread_rows(rows) * W;
    T* weights = weights_ + rank * weights_size_;
    for (int g = 0; g < G; ++g) {
      for (int64_t panel = 0; panel < columns_.count(); ++panel) {
        const char* block =
            static_cast<const char*>(in_.w_hh) + (g * s_.H + head * K) * K * static_cast<int64_t>(size_of(s_.dtype));
        pack_row_panel<T>(block, K, s_.dtype, columns_, panel, K, panel_of(weights, g, panel));
      }
    }
    T* dpre = dpre_ + rank * G * rows_size_;
    T* state[4];  // the gradients of h, c, n and m that come from later steps
    for (int i = 0; i < 4; ++i) {
      state[i] = state_ + (rank * 4 + i) * rows_size_;
      this->load_state(p_.grad_last[i], head, begin, rows, state[i]);
    }
    for (int64_t s = 0; s < s_.T; ++s) {
      const int64_t t = this->step(s, !s_.reverse);
      for (int64_t block = 0; block < units_.blocks(); ++block) {
        for (int64_t r = 0; r < rows; ++r) unit(head, t, begin, block, r, stride, dpre, state);
      }
      for (int64_t panel = 0; panel < columns_.count(); ++panel) {
        for_tiles(kRows, 0, rows, [&](int64_t first, int height) {
          tile(t, begin, panel, first, height, stride, weights, dpre, state[0]);
        });
      }
    }
    for (int i = 0; i < 4; ++i) this->store_state(state[i], head, begin, rows, p_.grad_states[i]);
  }

  // The cell's derivative, of a row's block of units.
  void unit(int head, int64_t t, int64_t begin, int64_t block, int64_t r, int64_t stride, T* dpre, T* const* state) {
    const int lanes = units_.lanes(block);
    const int64_t b = begin + r, first = head * units_.length + block * W, at = (t * s_.B + b) * s_.H;
    const uint8_t flags = this->flags(t, b);
    const int64_t own = r * this->padded() + block * W;
    V grad[G] = {};
    if (!(flags & StepFlags::kPad)) {
      const bool begins = flags & StepFlags::kBegins;
      V pre[G];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        pre[g] = S::load_n(static_cast<const T*>(p_.pre) + 4 * at + g * s_.H + first, lanes);
      }
      const State after = saved(t, b, first, lanes), before = begins ? State{} : previous(t, b, first, lanes);
      V dh = S::load(state[0] + own);
      if (p_.grad_y.data) {
        dh +=
            load_as<T>(p_.grad_y.data, t * p_.grad_y.step_stride + b * p_.grad_y.row_stride + first, lanes, s_.dtype);
      }
      State d{S::load(state[1] + own), S::load(state[2] + own), S::load(state[3] + own)};
      Cell::backward(pre, before, after, dh, d, grad);
      S::store(state[1] + own, begins ? V{} : d.c);
      S::store(state[2] + own, begins ? V{} : d.n);
      S::store(state[3] + own, begins ? V{} : d.m);
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      S::store(dpre + g * rows_size_ + block * stride + r * W, grad[g]);
      store_as<T>(p_.grad_gx, 4 * at + g * s_.H + first, grad[g], lanes, s_.dtype);
    }
  }

  State saved(int64_t t, int64_t b, int64_t first, int lanes) const {
    const T* from = static_cast<const T*>(p_.saved) + 3 * (t * s_.B + b) * s_.H + first;
    return {S::load_n(from, lanes), S::load_n(from + s_.H, lanes), S::load_n(from + 2 * s_.H, lanes)};
  }
  // The state that a step begins with: beyond its length a row has still the first one.
  State previous(int64_t t, int64_t b, int64_t first, int lanes) const {
    const int64_t other = s_.reverse ? t + 1 : t - 1;
    if (other >= 0 && other < s_.T && !(this->flags(other, b) & StepFlags::kPad))
      return saved(other, b, first, lanes);
    V v[3];
    for (int i = 0; i < 3; ++i) {
      v[i] = in_.states[i + 1] ? load_as<T>(in_.states[i + 1], b * s_.H + first, lanes, s_.dtype) : V{};
    }
    return {v[0], v[1], v[2]};
  }

  // The gradient of h of the step before, of some rows and a panel of units.
  void tile(int64_t t, int64_t begin, int64_t panel, int64_t first, int height, int64_t stride, T* weights,
            const T* dpre, T* dh) const {
    alignas(64) T sums[kRows * kPanelVectors * W];
    const int vectors = columns_.blocks_of(panel);
    for (int i = 0; i < height * vectors; ++i) S::store(sums + i * W, V{});
    for (int g = 0; g < G; ++g) {
      multiply<T>(height, vectors, sums, dpre + g * rows_size_ + first * W, stride, panel_of(weights, g, panel),
                  vectors * W, units_.length);
    }
    for (int m = 0; m < height; ++m) {
      const uint8_t flags = this->flags(t, begin + first + m);
      if (flags & StepFlags::kPad) continue;  // where the state was carried, its gradient is
      for (int v = 0; v < vectors; ++v) {
        T* to = dh + (first + m) * this->padded() + (columns_.first_block(panel) + v) * W;
        S::store(to, flags & StepFlags::kBegins ? V{} : S::load(sums + (m * vectors + v) * W));
      }
    }
  }

  const SlstmBackwardParams& p_;
  const Panels<T> columns_;
  T *weights_, *dpre_, *state_;
  int64_t weights_size_, rows_size_;
};

}  // namespace
}  // namespace fastrnn
