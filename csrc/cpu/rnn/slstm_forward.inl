// The sLSTM's forward pass. A step of a head: tiles of rows by a block of units, which begin as the input's part of
// the gates, become the pre-activations by the product with h, and go through the cell.
#pragma once
#include "cpu/rnn/slstm.inl"

namespace fastrnn {
namespace {

template <class T>
class SlstmForward : Slstm<T> {
  using Base = Slstm<T>;
  using Base::arena_, Base::in_, Base::s_, Base::units_, Base::G, Base::W;
  using typename Base::Cell;
  using typename Base::S;
  using typename Base::State;
  using typename Base::V;
  static constexpr int kPartGates = gates_a_tile(G), kParts = G / kPartGates;  // of a gate panel
  static constexpr int kRows = tile_rows(kPartGates);

 public:
  SlstmForward(const SlstmForwardParams& params, const SlstmPlan& plan, char* workspace)
      : Base(params.in, plan, workspace), p_(params) {
    const int64_t workers = plan.workers(), rows = spread_rows(this->most_rows()), width = this->padded();
    panel_size_ = units_.length * G * W;
    weights_ = arena_.template take<T>(workers * units_.blocks() * panel_size_);
    h_size_ = rows * width;
    h_ = arena_.template take<T>(workers * 2 * h_size_);
    state_ = arena_.template take<T>(workers * 3 * h_size_);
    row_ = arena_.template take<T>(workers * h_size_);
  }

  size_t workspace_bytes() const { return arena_.used; }
  static void body(int64_t begin, int64_t end, void* self) {
    for (int64_t r = begin; r < end; ++r) static_cast<SlstmForward*>(self)->work(static_cast<int>(r));
  }

 private:
  void work(int rank) {
    const int64_t begin = this->first_row(this->batch_group(rank));
    const int64_t rows = this->first_row(this->batch_group(rank) + 1) - begin;
    if (rows == 0) return;
    const int last = this->first_head(this->head_group(rank) + 1);
    for (int head = this->first_head(this->head_group(rank)); head < last; ++head) walk(rank, head, begin, rows);
  }

  // The gate panels (pack.inl) of a head.
  void pack(int head, T* to) const {
    const int64_t K = units_.length;
    for (int64_t block = 0; block < units_.blocks(); ++block, to += panel_size_) {
      for (int g = 0; g < G; ++g) {
        T* part = to + g / kPartGates * K * kPartGates * W + g % kPartGates * W;
        const int64_t row = g * s_.H + head * K + block * W;
        for (int64_t k = 0; k < K; k += W) {
          const int n = static_cast<int>(min_of<int64_t>(W, K - k));
          V columns[W];
          load_transposed<T>(columns, in_.w_hh, row, K, k, units_.lanes(block), n, s_.dtype);
          alignas(64) T edge[W * W];
#pragma GCC unroll 16
          for (int j = 0; j < W; ++j) S::store(edge + j * W, columns[j]);
          for (int j = 0; j < n; ++j) S::store(part + (k + j) * kPartGates * W, S::load(edge + j * W));
        }
      }
    }
  }

  // h is kept blocked (tile.inl), as the product reads it; c, n and m by rows.
  void walk(int rank, int head, int64_t begin, int64_t rows) {
    T* weights = weights_ + rank * units_.blocks() * panel_size_;
    pack(head, weights);
    T *h = h_ + rank * 2 * h_size_, *next = h + h_size_;
    T* state[3];
    for (int i = 0; i < 3; ++i) {
      state[i] = state_ + (rank * 3 + i) * h_size_;
      this->load_state(in_.states[i + 1], head, begin, rows, state[i]);
    }
    T* row = row_ + rank * h_size_;
    this->load_state(in_.states[0], head, begin, rows, row);
    const int64_t stride = spread_rows(rows) * W;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t block = 0; block < units_.blocks(); ++block) {
        S::store(h + block * stride + r * W, S::load(row + r * this->padded() + block * W));
      }
    }
    for (int64_t s = 0; s < s_.T; ++s) {
      const int64_t t = this->step(s, s_.reverse);
      for (int64_t r = 0; in_.flags && r < rows; ++r) {
        if (!(this->flags(t, begin + r) & StepFlags::kBegins)) continue;
        for (T* of : state) this->clear(of + r * this->padded());
        for (int64_t block = 0; block < units_.blocks(); ++block) S::store(h + block * stride + r * W, V{});
      }
      for (int64_t block = 0; block < units_.blocks(); ++block) {
        for_tiles(kRows, 0, rows, [&](int64_t first, int height) {
          tile(head, t, begin, block, first, height, stride, weights + block * panel_size_, h, next, state);
        });
      }
      T* const old = h;
      h = next;
      next = old;
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t block = 0; block < units_.blocks(); ++block) {
        S::store(row + r * this->padded() + block * W, S::load(h + block * stride + r * W));
      }
    }
    this->store_state(row, head, begin, rows, p_.last[0]);
    for (int i = 0; i < 3; ++i) this->store_state(state[i], head, begin, rows, p_.last[i + 1]);
  }

  void tile(int head, int64_t t, int64_t begin, int64_t block, int64_t first, int height, int64_t stride,
            const T* weights, const T* h, T* next, T* const* state) {
    alignas(64) T sums[kParts][kRows * kPartGates * W];
    const int lanes = units_.lanes(block);
    const int64_t unit = head * units_.length + block * W;
    const auto is_pad = [&](int m) { return (this->flags(t, begin + first + m) & StepFlags::kPad) != 0; };
    for (int m = 0; m < height; ++m) {
      const int64_t b = begin + first + m, from = t * p_.gx.step_stride + b * p_.gx.row_stride + unit;
      const bool pad = is_pad(m);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        const V v = pad ? V{} : load_as<T>(p_.gx.data, from + g * s_.H, lanes, s_.dtype);
        S::store(sums[g / kPartGates] + (m * kPartGates + g % kPartGates) * W, v);
      }
    }
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      multiply<T>(height, kPartGates, sums[part], h + first * W, stride,
                  weights + part * units_.length * kPartGates * W, kPartGates * W, units_.length);
    }
    for (int m = 0; m < height; ++m) {
      const int64_t r = first + m, at = (t * s_.B + begin + r) * s_.H;
      T* to = next + block * stride + r * W;
      if (is_pad(m)) {
        S::store(to, S::load(h + block * stride + r * W));
        store_as<T>(p_.y, at + unit, V{}, lanes, s_.dtype);
        continue;
      }
      V pre[G];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        pre[g] = S::load(sums[g / kPartGates] + (m * kPartGates + g % kPartGates) * W);
        if (p_.pre) S::store_n(static_cast<T*>(p_.pre) + 4 * at + g * s_.H + unit, pre[g], lanes);
      }
      const int64_t own = r * this->padded() + block * W;
      State now{S::load(state[0] + own), S::load(state[1] + own), S::load(state[2] + own)};
      const V out = Cell::forward(pre, now);
      S::store(state[0] + own, now.c);
      S::store(state[1] + own, now.n);
      S::store(state[2] + own, now.m);
      S::store(to, out);
      store_as<T>(p_.y, at + unit, out, lanes, s_.dtype);
      if (p_.saved) {
        T* saved = static_cast<T*>(p_.saved) + 3 * at + unit;
        S::store_n(saved, now.c, lanes);
        S::store_n(saved + s_.H, now.n, lanes);
        S::store_n(saved + 2 * s_.H, now.m, lanes);
      }
    }
  }

  const SlstmForwardParams& p_;
  T *weights_, *h_, *state_, *row_;
  int64_t panel_size_, h_size_;
};

}  // namespace
}  // namespace fastrnn
