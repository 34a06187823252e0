// What both passes of the SRU's scan share: which worker owns which columns, how it visits them, and how it
// reads and writes their rows.
#pragma once
#include "cpu/scan/kernels.h"
#include "cpu/simd/math.h"

namespace fastrnn {
namespace {

// A direction's features that one worker owns: [first, first + width) of O.
struct Segment {
  int direction;
  int64_t first, width;
};

template <class T, Dtype kDtype, template <class> class CellOf>
class Scan {
 protected:
  using Cell = CellOf<VectorMath<T>>;
  static constexpr int kInputs = Cell::kInputs, kGates = Cell::kGates;
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
      for (int64_t t = 0; t < s_.T; ++t) steps += min_of(middle, s_.batch_sizes[t]);
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
    for (int64_t s = 0; s < s_.T; ++s) {
      const int64_t t = descending ? s_.T - 1 - s : s;
      const int64_t end = min_of(row_end, s_.active(t));
      const int64_t next = s + 1 < s_.T ? (descending ? t - 1 : t + 1) : t;
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
  // StepFlags of a direction's step.
  uint8_t flags(int direction, int64_t t, int64_t b) const {
    return in_.flags ? in_.flags[direction * in_.flags_stride + t * s_.B + b] : 0;
  }

  // The gates' weights, then their biases, of a segment in the compute type, [2 * kGates][padded(width)].
  void load_weights(const Segment& segment, T* to) const {
    const int64_t width = padded(segment.width);
    for (int i = 0; i < 2 * kGates; ++i) {
      const void* from = i < kGates ? in_.weight_c : in_.bias;
      for (int64_t j = 0; j < width; j += W) {
        const int n = static_cast<int>(min_of<int64_t>(W, segment.width - j));
        S::store(to + i * width + j, load_as<T>(from, i % kGates * s_.O + segment.first + j, n, kDtype));
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

  static void clear_state(T* state, int64_t width) {
    for (int64_t j = 0; j < width; j += W) S::store(state + j, V{});
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

}  // namespace
}  // namespace fastrnn
