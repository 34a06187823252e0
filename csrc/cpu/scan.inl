// The SRU's scan over the whole sequence, forward and backward (cells/sru.h), for one instruction set.
//
// Every column (row of the batch, feature) is a recurrence of its own, and a step of it costs some forty
// operations for five or more values from memory: the scan is bound by memory. So a worker takes a share of
// the columns and walks through time with all of them, in the order in which u lies in memory: K + 1
// sequential streams in, one or two out, while c (forward) or its gradient (backward) stays in the cache.
// The next row is prefetched, because hardware prefetchers start anew with every row of a gate.
//
// Bytes a column and step, e bytes an element, a bytes a state value: forward (K+2)e, with x e more, a more
// where c is saved; backward reads (K+2)e + a, writes (K+1)e.
#pragma once
#include "../cells/sru.h"
#include "math.h"
#include "scan.h"

namespace fastrnn {
namespace {

// A direction's features that one worker owns: [first, first + width) of O.
struct Segment {
  int direction;
  int64_t first, width;
};

// What both passes share: who owns which columns, and the order in which they are visited.
template <class T, Dtype kDtype>
class Scan {
 protected:
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int W = S::W;
  // State of a worker's columns that stays in half of an L2 cache; more columns are done in several turns.
  static constexpr int64_t kStateBytes = 256 << 10;
  // Units are shared out in blocks of whole cache lines of every type.
  static constexpr int64_t kUnitBlock = 64;
  // How far ahead of its use a row of u is fetched, in bytes. Measured on Zen 4, float32, L = 100, B = 32,
  // O = 512, one thread: 27 GB/s; 22 at 4 KB, and 18 to 20 where rows go into the L1 cache.
  static constexpr int64_t kAhead = 16384;

  Scan(const ScanInputs& in, const ScanPlan& plan, char* workspace) : in_(in), s_(in.shape), plan_(plan) {
    arena_.base = workspace;
  }

  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
  static int64_t padded(int64_t width) { return ceil_div(width, W) * W; }

  int batch_group(int rank) const { return rank / plan_.unit_groups; }
  int unit_group(int rank) const { return rank % plan_.unit_groups; }

  // First feature of a unit group, of O.
  int64_t first_feature(int group) const {
    const int64_t blocks = ceil_div(s_.H(), kUnitBlock), at = s_.D * blocks * group / plan_.unit_groups;
    return at / blocks * s_.H() + min_of(at % blocks * kUnitBlock, s_.H());
  }

  // First row of a batch group, so that all have about as many steps to do.
  int64_t first_row(int group) const {
    if (!s_.batch_sizes) return s_.B * group / plan_.batch_groups;
    if (group == plan_.batch_groups) return s_.B;
    const double wanted = static_cast<double>(s_.rows()) * group / plan_.batch_groups;
    int64_t low = 0, high = s_.B;  // rows before `low` have fewer steps than wanted, those before `high` enough
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      int64_t steps = 0;
      for (int64_t t = 0; t < s_.L; ++t) steps += min_of(middle, s_.batch_sizes[t]);
      if (static_cast<double>(steps) < wanted) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // The most features that a worker has at once, and the rows whose state it then keeps.
  int64_t widest() const {
    int64_t most = 0;
    for (int g = 0; g < plan_.unit_groups; ++g) most = max_of(most, first_feature(g + 1) - first_feature(g));
    return padded(min_of(most, s_.H()));
  }
  int64_t rows_at_once(int64_t width) const {
    return max_of(int64_t{1},
                  min_of(s_.B, kStateBytes / static_cast<int64_t>(sizeof(T)) / max_of(width, int64_t{1})));
  }

  // f(segment) for each direction that a worker has features of.
  template <class F>
  void for_segments(int rank, F&& f) const {
    const int64_t begin = first_feature(unit_group(rank)), end = first_feature(unit_group(rank) + 1);
    for (int d = 0; d < s_.D; ++d) {
      const int64_t first = max_of(begin, d * s_.H()), last = min_of(end, (d + 1) * s_.H());
      if (first < last) f(Segment{d, first, last - first});
    }
  }

  // A row of the sequence, and one to fetch meanwhile.
  struct Visit {
    int64_t t, b;
    int64_t ahead_t, ahead_b;
  };

  // f(visit) for every step of the rows [row_begin, row_end), in the order of time or against it.
  template <class F>
  void for_steps(bool descending, int64_t row_begin, int64_t row_end, int64_t width, F&& f) const {
    const int64_t row_bytes = s_.K * width * static_cast<int64_t>(size_of(kDtype));
    const int64_t lead = max_of(int64_t{1}, kAhead / max_of(row_bytes, int64_t{1}));
    for (int64_t s = 0; s < s_.L; ++s) {
      const int64_t t = descending ? s_.L - 1 - s : s;
      const int64_t end = min_of(row_end, s_.active(t));
      const int64_t next = s + 1 < s_.L ? (descending ? t - 1 : t + 1) : t;
      const int64_t next_end = min_of(row_end, s_.active(next));
      for (int64_t b = row_begin; b < end; ++b) {
        Visit visit{t, b, t, b + lead};
        if (visit.ahead_b >= end) {
          visit.ahead_t = next;
          visit.ahead_b = max_of(row_begin, min_of(row_begin + visit.ahead_b - end, next_end - 1));
        }
        f(visit);
      }
    }
  }

  // Where a row's first element lies, in elements.
  template <class AnyRows>
  int64_t offset(const AnyRows& rows, int64_t t, int64_t b) const {
    return s_.batch_sizes ? (s_.row_offset(t) + b) * rows.row_stride : t * rows.step_stride + b * rows.row_stride;
  }
  template <class AnyRows>
  const char* row_of(const AnyRows& rows, int64_t t, int64_t b) const {
    if (!rows.data) return nullptr;
    return static_cast<const char*>(rows.data) + offset(rows, t, b) * static_cast<int64_t>(size_of(kDtype));
  }
  // Element i of a contiguous tensor of the layer's type; null stays null.
  static const void* element(const void* data, int64_t i) {
    return data ? static_cast<const char*>(data) + i * static_cast<int64_t>(size_of(kDtype)) : nullptr;
  }
  static void* element(void* data, int64_t i) {
    return data ? static_cast<char*>(data) + i * static_cast<int64_t>(size_of(kDtype)) : nullptr;
  }
  bool is_pad(int64_t t, int64_t b) const { return in_.mask_pad && in_.mask_pad[t * s_.B + b]; }

  // w_f, w_r, b_f, b_r of a segment in the compute type, [4][padded(width)].
  void load_weights(const Segment& segment, T* to) const {
    const int64_t width = padded(segment.width);
    for (int i = 0; i < 4; ++i) {
      const void* from = i < 2 ? in_.weight_c : in_.bias;
      for (int64_t j = 0; j < width; j += W) {
        const int n = static_cast<int>(min_of<int64_t>(W, segment.width - j));
        S::store(to + i * width + j, load_as<T>(from, (i & 1) * s_.O + segment.first + j, n, kDtype));
      }
    }
  }

  // to (T) = a (rows of O, layer's type; null: zeros) of a segment's columns.
  void load_state(const void* from, const Segment& segment, int64_t row_begin, int64_t row_end, T* to) const {
    const int64_t width = padded(segment.width);
    for (int64_t b = row_begin; b < row_end; ++b) {
      for (int64_t j = 0; j < width; j += W) {
        const int n = static_cast<int>(min_of<int64_t>(W, segment.width - j));
        const V v = from ? load_as<T>(from, b * s_.O + segment.first + j, n, kDtype) : V{};
        S::store(to + (b - row_begin) * width + j, v);
      }
    }
  }
  void store_state(const T* from, const Segment& segment, int64_t row_begin, int64_t row_end, void* to) const {
    const int64_t width = padded(segment.width);
    for (int64_t b = row_begin; b < row_end; ++b) {
      for (int64_t j = 0; j < width; j += W) {
        const int n = static_cast<int>(min_of<int64_t>(W, segment.width - j));
        store_as<T>(to, b * s_.O + segment.first + j, S::load(from + (b - row_begin) * width + j), n, kDtype);
      }
    }
  }

  // f(j, n) for every register of a row: n = W lanes, a constant to the compiler, but for the last.
  template <class F>
  static FASTRNN_INLINE void for_vectors(int64_t width, F&& f) {
    int64_t j = 0;
    for (; j + W <= width; j += W) f(j, W);
    if (j < width) f(j, static_cast<int>(width - j));
  }

  static void fill_zero(void* row, int64_t first, int64_t width) {
    for_vectors(width, [&](int64_t j, int n) { store_as<T>(row, first + j, V{}, n, kDtype); });
  }

  // Whole registers of a result may bypass the cache where each is aligned to its size.
  bool may_stream(const void* result, int64_t element_bytes) const {
    const int64_t bytes = W * element_bytes;
    bool aligned =
        plan_.stream && reinterpret_cast<uintptr_t>(result) % bytes == 0 && s_.O * element_bytes % bytes == 0;
    for (int g = 0; g < plan_.unit_groups; ++g) aligned = aligned && first_feature(g) * element_bytes % bytes == 0;
    return aligned && (s_.D == 1 || s_.H() * element_bytes % bytes == 0);
  }
  static FASTRNN_INLINE void put(void* row, int64_t index, V v, int n, bool stream) {
    if (stream && n == W) {
      stream_as<T>(row, index, v, kDtype);
    } else {
      store_as<T>(row, index, v, n, kDtype);
    }
  }
  // The same for c, which is saved in the compute type.
  static FASTRNN_INLINE void put_cell(T* row, V v, int n, bool stream) {
    constexpr Dtype kCompute = sizeof(T) == 8 ? Dtype::kDouble : Dtype::kFloat;
    if (stream && n == W) {
      stream_as<T>(row, 0, v, kCompute);
    } else {
      S::store_n(row, v, n);
    }
  }

  // Into the L2 cache.
  static FASTRNN_INLINE void fetch(const char* row, int64_t index) {
    __builtin_prefetch(row + index * static_cast<int64_t>(size_of(kDtype)), 0, 2);
  }

  const ScanInputs& in_;
  const ScanShape& s_;
  const ScanPlan& plan_;
  Arena arena_;
};

template <class T, Dtype kDtype, bool kTanh>
class ScanForward : Scan<T, kDtype> {
  using Base = Scan<T, kDtype>;
  using Base::arena_, Base::in_, Base::plan_, Base::s_, Base::W;
  using typename Base::S;
  using typename Base::V;
  using typename Base::Visit;
  using Cell = SruCell<VectorMath<T>, kTanh>;

 public:
  ScanForward(const ScanForwardParams& params, const ScanPlan& plan, char* workspace)
      : Base(params.in, plan, workspace), p_(params) {
    const int64_t width = this->widest();
    weights_ = arena_.template take<T>(plan.workers() * 4 * width);
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
    T* weights = weights_ + rank * 4 * widest;
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
    if (this->is_pad(at.t, at.b)) {
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
    const bool skip = s_.K == 4, stream_h = stream_h_, stream_cells = stream_cells_;
    const V scale = S::set(in_.scale);
    this->for_vectors(segment.width, [&](int64_t j, int n) __attribute__((always_inline)) {
      const int64_t o = first + j;
      V input[3], w[2], b[2], highway{}, c, out;
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        input[k] = load_as<T>(u, k * gate + o, n, kDtype);
        this->fetch(u_ahead, k * gate + o);
      }
      if (skip) {
        highway = load_as<T>(u, 3 * gate + o, n, kDtype);
        this->fetch(u_ahead, 3 * gate + o);
      } else if (x) {
        highway = scale * load_as<T>(x, o, n, kDtype);
        this->fetch(x_ahead, o);
      }
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        w[k] = S::load(weights + k * width + j);
        b[k] = S::load(weights + (2 + k) * width + j);
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

// The gradients of weight_c and bias are sums over all rows and steps. A worker adds its rows up in a block
// that stays in the L1 cache, moves it into sums in double now and then (a long float sum would lose digits),
// and in the end the workers add up each other's sums in a fixed order.
template <class T, Dtype kDtype, bool kTanh>
class ScanBackward : Scan<T, kDtype> {
  using Base = Scan<T, kDtype>;
  using Base::arena_, Base::in_, Base::plan_, Base::s_, Base::W;
  using typename Base::S;
  using typename Base::V;
  using typename Base::Visit;
  using Cell = SruCell<VectorMath<T>, kTanh>;
  static constexpr int kSums = 4;  // w_f, w_r, b_f, b_r
  static constexpr int64_t kRowsInFloat = 256;

 public:
  ScanBackward(const ScanBackwardParams& params, const ScanPlan& plan, char* workspace)
      : Base(params.in, plan, workspace), p_(params) {
    const int64_t width = this->widest();
    weights_ = arena_.template take<T>(plan.workers() * 4 * width);
    state_ = arena_.template take<T>(plan.workers() * this->rows_at_once(width) * width);
    const bool sums = p_.grad_weight_c != nullptr;
    block_ = arena_.template take<T>(sums ? plan.workers() * kSums * width : 0);
    sums_ = arena_.template take<double>(sums ? plan.batch_groups * kSums * s_.O : 0);
    barrier_ = arena_.template take<Barrier>(1);
    if (workspace) barrier_->arrivals = 0;
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
      barrier_->arrive();
    }
    if (!p_.grad_weight_c) return;
    barrier_->wait(workers());  // every worker's sums are complete
    for (int r = begin; r < end; ++r) {
      const int64_t columns = kSums * s_.O;
      for (int64_t i = columns * r / workers(); i < columns * (r + 1) / workers(); ++i) {
        double sum = 0;
        for (int g = 0; g < plan_.batch_groups; ++g) sum += sums_[g * columns + i];
        const bool of_weight = i < 2 * s_.O;
        store_as<T>(of_weight ? p_.grad_weight_c : p_.grad_bias, of_weight ? i : i - 2 * s_.O,
                    S::broadcast(static_cast<T>(sum)), 1, kDtype);
      }
    }
  }

  void work(int rank) {
    const int64_t widest = this->widest();
    T* weights = weights_ + rank * 4 * widest;
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
    if (before < 0 || before >= s_.L || b >= s_.active(before)) return nullptr;
    return static_cast<const T*>(p_.cells) + (s_.row_offset(before) + b) * s_.O + segment.first;
  }

  // False for a pad, which adds nothing to the sums. fresh: the block holds nothing yet.
  bool row(const Visit& at, const Segment& segment, const T* weights, T* state, T* block, bool fresh) {
    const int64_t first = segment.first, width = this->padded(segment.width), natural = s_.row_offset(at.t) + at.b;
    const int64_t O = s_.O;
    void* du = this->element(p_.grad_u, natural * s_.K * O);
    void* dx = this->element(p_.grad_x, natural * O);
    void* dv = this->element(p_.grad_v, natural * 2 * O);
    if (this->is_pad(at.t, at.b)) {
      for (int k = 0; du && k < s_.K; ++k) this->fill_zero(du, k * O + first, segment.width);
      for (int k = 0; dv && k < 2; ++k) this->fill_zero(dv, k * O + first, segment.width);
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
    const T* cells = previous_cells(segment, at.t, at.b);
    const T* cells_ahead = previous_cells(segment, at.ahead_t, at.ahead_b);
    const void* c0 = this->element(in_.c0, at.b * O);
    const void* drop = this->element(in_.drop_mask, at.b * O);
    const int64_t gate = in_.u.gate_stride, v_gate = in_.v.gate_stride;
    const bool skip = s_.K == 4, stream_u = stream_u_, stream_x = stream_x_;
    const V scale = S::set(in_.scale);
    this->for_vectors(segment.width, [&](int64_t j, int n) __attribute__((always_inline)) {
      const int64_t o = first + j;
      V input[3], w[2], b[2], highway{}, grad[3], grad_highway, dc;
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        input[k] = load_as<T>(u, k * gate + o, n, kDtype);
        this->fetch(u_ahead, k * gate + o);
      }
      if (skip) {
        highway = load_as<T>(u, 3 * gate + o, n, kDtype);
        this->fetch(u_ahead, 3 * gate + o);
      } else if (x) {
        highway = scale * load_as<T>(x, o, n, kDtype);
        this->fetch(x_ahead, o);
      }
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        w[k] = S::load(weights + k * width + j);
        b[k] = S::load(weights + (2 + k) * width + j);
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
      Cell::backward(input, w, b, highway, m, c_prev, dh, S::load(state + j), grad, grad_highway, dc);
      S::store(state + j, dc);
      const V dw[2] = {grad[1] * c_prev, grad[2] * c_prev};
      if (du) {
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) this->put(du, k * O + o, grad[k], n, stream_u);
        if (skip) this->put(du, 3 * O + o, grad_highway, n, stream_u);
      }
      if (dx) this->put(dx, o, grad_highway * scale, n, stream_x);
      if (dv) {
        store_as<T>(dv, o, dw[0], n, kDtype);
        store_as<T>(dv, O + o, dw[1], n, kDtype);
      }
      if (block) {
        const V more[kSums] = {dw[0], dw[1], grad[1], grad[2]};
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
  T *weights_, *state_, *block_;
  double* sums_;
  Barrier* barrier_;
  bool stream_u_, stream_x_;
};

// Calls f.template operator()<T, dtype, use_tanh>().
template <class F>
void with_scan(const ScanShape& s, F&& f) {
  const auto with_type = [&]<class T, Dtype kDtype>() {
    s.use_tanh ? f.template operator()<T, kDtype, true>() : f.template operator()<T, kDtype, false>();
  };
  switch (s.dtype) {
    case Dtype::kFloat:
      return with_type.template operator()<float, Dtype::kFloat>();
    case Dtype::kDouble:
      return with_type.template operator()<double, Dtype::kDouble>();
    case Dtype::kBFloat16:
      return with_type.template operator()<float, Dtype::kBFloat16>();
    case Dtype::kHalf:
      return with_type.template operator()<float, Dtype::kHalf>();
  }
}

template <template <class, Dtype, bool> class Kernel, class Params>
size_t scan_workspace(const Params& params, const ScanPlan& plan) {
  size_t bytes = 0;
  with_scan(params.in.shape, [&]<class T, Dtype kDtype, bool kTanh>() {
    bytes = Kernel<T, kDtype, kTanh>(params, plan, nullptr).workspace_bytes();
  });
  return bytes;
}

template <template <class, Dtype, bool> class Kernel, class Params>
void run_scan(const Params& params, const ScanPlan& plan, char* workspace, const Parallel& parallel) {
  with_scan(params.in.shape, [&]<class T, Dtype kDtype, bool kTanh>() {
    Kernel<T, kDtype, kTanh> kernel(params, plan, workspace);
    parallel.run(kernel.workers(), Kernel<T, kDtype, kTanh>::body, &kernel);
  });
}

int scan_lanes(Dtype dtype) { return dtype == Dtype::kDouble ? Simd<double>::W : Simd<float>::W; }

constexpr ScanKernels make_scan_kernels() {
  return {scan_lanes, scan_workspace<ScanForward, ScanForwardParams>, run_scan<ScanForward, ScanForwardParams>,
          scan_workspace<ScanBackward, ScanBackwardParams>, run_scan<ScanBackward, ScanBackwardParams>};
}

}  // namespace
}  // namespace fastrnn
