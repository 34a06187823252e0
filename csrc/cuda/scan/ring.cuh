// What both passes of the scan share: a thread's column, its walk through time, and the ring in shared memory
// into which it copies the values of the steps ahead.
#pragma once
#include "cuda/device/async_copy.cuh"
#include "cuda/device/fast_math.cuh"
#include "cuda/scan/kernels.h"

namespace fastrnn::cuda {

constexpr int kChunk = 4;  // steps of a group of copies
// 20 steps on their way: with 4 warps an SM and 4 streams of bfloat16 that is 20 KB, above the 14 KB that
// latency times bandwidth asks for.
constexpr int kStages = 6;
constexpr int kSteps = kChunk * kStages;

template <class T>
inline constexpr int kScanBlock = sizeof(T) == 8 ? 32 : 64;  // small: few columns reach more SMs

// The policy of the cell: in float, gates to about 1e-6. tanh stays precise, being outside of the chain of c.
template <class A>
struct ScanMath : ScalarMath<A> {};
template <>
struct ScanMath<float> : ScalarMath<float> {
  // Exactly 1 where it has converged (see cells/cell.h), whatever the approximate reciprocal of 1 is.
  static FASTRNN_HD float sigmoid(float v) {
    const float d = 1.0f + fast_exp2(v * -1.4426950408889634f);
    return d == 1.0f ? 1.0f : fast_reciprocal(d);
  }
};

// kWide neighbouring values as one access.
template <class T, int kWide, class A>
__device__ __forceinline__ void store_wide(T* to, const A* values) {
  if constexpr (kWide == 1) {
    store(to, values[0]);
  } else {
    alignas(8) T rounded[kWide];
#pragma unroll
    for (int i = 0; i < kWide; ++i) store(rounded + i, values[i]);
    using Word = std::conditional_t<sizeof(rounded) == 8, uint64_t, uint32_t>;
    static_assert(sizeof(Word) == sizeof(rounded));
    Word word;
    memcpy(&word, rounded, sizeof(word));
    *reinterpret_cast<Word*>(to) = word;
  }
}
template <class T, int kWide, class A>
__device__ __forceinline__ void load_wide(const T* from, A* values) {
#pragma unroll
  for (int i = 0; i < kWide; ++i) values[i] = load(from + i);
}

// A thread's column, and the rows that it visits.
struct Column {
  int64_t b, o;        // row of the batch, first feature
  int64_t steps;       // of this row
  int64_t t, towards;  // first step to visit, and +1 or -1
  __device__ bool reverse(const ScanShape& s) const { return s.D == 2 && o >= s.O / 2; }
};

// False for the threads beyond the last column. descending: against the direction's own time.
template <int kWide>
__device__ __forceinline__ bool find_column(const ScanShape& s, const ScanTables& tables, bool descending,
                                            Column& out) {
  const int64_t wide = s.O / kWide, i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= s.B * wide) return false;
  out.b = i / wide;
  out.o = (i - out.b * wide) * kWide;
  out.steps = tables.lengths ? tables.lengths[out.b] : s.T;
  const bool down = out.reverse(s) != descending;
  out.t = down ? out.steps - 1 : 0;
  out.towards = down ? -1 : 1;
  return true;
}

// One after the other the rows that a column visits: its offset in one tensor, in elements.
struct Walk {
  int64_t at;      // offset of the current row
  int64_t step;    // to the next one; padded sequences
  int64_t stride;  // of a row, and the table of rows; packed sequences
  __device__ __forceinline__ void next(const ScanTables& tables, const Column& column, int64_t t) {
    if (tables.row_offsets) {
      at = (tables.row_offsets[t] + column.b) * stride;
    } else {
      at += step;
    }
  }
};
__device__ __forceinline__ Walk walk(const ScanTables& tables, const Column& column, int64_t step_stride,
                                     int64_t row_stride) {
  Walk w;
  w.step = column.towards * step_stride;
  w.stride = row_stride;
  w.at = 0;
  if (column.steps == 0) return w;
  w.at = tables.row_offsets ? (tables.row_offsets[column.t] + column.b) * row_stride
                            : column.t * step_stride + column.b * row_stride;
  return w;
}

// What one pass copies ahead: up to eight streams, each a word for every step and thread.
template <class T, int kWide>
class Ring {
 public:
  using A = Compute<T>;
  static constexpr int kWord = kWide * sizeof(T) < 4 ? 4 : kWide * static_cast<int>(sizeof(T));
  static constexpr int kCell = kWide * static_cast<int>(sizeof(A));

  // Bytes of a thread and step.
  static FASTRNN_HD int bytes(int streams, int cells, bool flags) {
    return streams * kWord + cells * kCell + (flags ? 4 : 0);
  }

  // streams of the layer's type, and of c or its gradient.
  __device__ Ring(unsigned char* memory, int streams, int cells)
      : words_(memory + threadIdx.x * kWord),
        streams_(streams),
        cell_streams_(cells),
        cells_(memory + static_cast<int64_t>(kSteps) * streams * blockDim.x * kWord + threadIdx.x * kCell),
        flags_(memory + static_cast<int64_t>(kSteps) * blockDim.x * (streams * kWord + cells * kCell) +
               threadIdx.x * 4) {}

  __device__ __forceinline__ void fetch(int slot, int stream, const T* from) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(from) & ~static_cast<uintptr_t>(kWord - 1);
    copy_async<kWord>(word(slot, stream), reinterpret_cast<const void*>(address));
  }
  // The same value, once it is there; from tells in which half of the word it lies.
  __device__ __forceinline__ void read(int slot, int stream, uintptr_t from, A* values) const {
    if constexpr (kWide * sizeof(T) < 4) {
      values[0] = load(reinterpret_cast<const T*>(word(slot, stream) + (from & 2)));
    } else {
      load_wide<T, kWide>(reinterpret_cast<const T*>(word(slot, stream)), values);
    }
  }
  __device__ __forceinline__ void fetch_cell(int slot, int stream, const A* from) {
    copy_async<kCell>(cell(slot, stream), from);
  }
  __device__ __forceinline__ void read_cell(int slot, int stream, A* values) const {
    load_wide<A, kWide>(reinterpret_cast<const A*>(cell(slot, stream)), values);
  }
  __device__ __forceinline__ void fetch_flags(int slot, const uint8_t* from) {
    copy_async<4>(flags(slot), reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) & ~uintptr_t{3}));
  }
  __device__ __forceinline__ uint8_t read_flags(int slot, const uint8_t* from) const {
    return flags(slot)[reinterpret_cast<uintptr_t>(from) & 3];
  }

 private:
  __device__ __forceinline__ unsigned char* word(int slot, int stream) const {
    return words_ + (slot * streams_ + stream) * static_cast<int>(blockDim.x) * kWord;
  }
  __device__ __forceinline__ unsigned char* cell(int slot, int stream) const {
    return cells_ + (slot * cell_streams_ + stream) * static_cast<int>(blockDim.x) * kCell;
  }
  __device__ __forceinline__ unsigned char* flags(int slot) const {
    return flags_ + slot * static_cast<int>(blockDim.x) * 4;
  }

  unsigned char* words_;
  int streams_, cell_streams_;
  unsigned char *cells_, *flags_;
};

// How many streams a pass copies: u and what is added to it.
template <class Cell>
FASTRNN_HD bool has_highway(const ScanInputs& in) {
  return in.shape.K == Cell::kInputs + 1 || in.x.data;
}
template <class Cell>
FASTRNN_HD int input_streams(const ScanInputs& in) {
  return Cell::kInputs + has_highway<Cell>(in) + (in.v.data ? Cell::kGates : 0);
}

// to[k] = from[k][j], so many.
template <int kCount, class A, int kWide>
__device__ __forceinline__ void pick_value(A* to, const A (*from)[kWide], int j) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) to[k] = from[k][j];
}

// Of the state: c before each step, and where it is given the gradient of every step's c.
FASTRNN_HD int cell_streams(const ScanBackwardParams& p) { return 1 + (p.grad_cells != nullptr); }

// The streams that forward and backward both read: u, the highway's input, v, the steps' flags. Two of them walk the
// same rows, one ahead of the other: the first starts copies, the second takes what has come.
template <class T, int kWide, class Cell>
class InputWalk {
 public:
  using A = Compute<T>;
  static constexpr int kInputs = Cell::kInputs, kGates = Cell::kGates;
  __device__ InputWalk(const ScanInputs& in, const ScanTables& tables, const Column& column)
      : in_(in),
        tables_(tables),
        column_(column),
        u_(walk(tables, column, in.u.step_stride, in.u.row_stride)),
        x_(walk(tables, column, in.x.step_stride, in.x.row_stride)),
        v_(walk(tables, column, in.v.step_stride, in.v.row_stride)),
        flags_(in.flags ? in.flags + column.reverse(in.shape) * in.flags_stride + column.b : nullptr),
        t_(column.t) {}

  __device__ __forceinline__ void fetch(Ring<T, kWide>& ring, int slot) const {
#pragma unroll
    for (int k = 0; k < kInputs; ++k) ring.fetch(slot, k, u(k));
    if (has_highway<Cell>(in_)) ring.fetch(slot, kInputs, highway());
    if (in_.v.data) {
#pragma unroll
      for (int k = 0; k < kGates; ++k) ring.fetch(slot, v_stream() + k, v(k));
    }
    if (flags_) ring.fetch_flags(slot, flags());
  }

  // weights: the gates' of the column, to which v is added. Returns the step's flags.
  __device__ __forceinline__ uint8_t read(const Ring<T, kWide>& ring, int slot, const A (*weights)[kWide],
                                          A (*values)[kWide], A* x, A (*w)[kWide]) const {
#pragma unroll
    for (int k = 0; k < kInputs; ++k) ring.read(slot, k, address(u(k)), values[k]);
#pragma unroll
    for (int i = 0; i < kWide; ++i) x[i] = 0;
    if (has_highway<Cell>(in_)) {
      ring.read(slot, kInputs, address(highway()), x);
      if (in_.shape.K == kInputs) {
#pragma unroll
        for (int i = 0; i < kWide; ++i) x[i] *= static_cast<A>(in_.scale);
      }
    }
#pragma unroll
    for (int k = 0; k < kGates; ++k) {
      A more[kWide] = {};
      if (in_.v.data) ring.read(slot, v_stream() + k, address(v(k)), more);
#pragma unroll
      for (int i = 0; i < kWide; ++i) w[k][i] = weights[k][i] + more[i];
    }
    return flags_ ? ring.read_flags(slot, flags()) : uint8_t{0};
  }

  // False after the last row.
  __device__ __forceinline__ void next() {
    t_ += column_.towards;
    if (t_ < 0 || t_ >= column_.steps) return;
    u_.next(tables_, column_, t_);
    if (in_.x.data) x_.next(tables_, column_, t_);
    if (in_.v.data) v_.next(tables_, column_, t_);
  }

 private:
  static __device__ __forceinline__ uintptr_t address(const T* p) { return reinterpret_cast<uintptr_t>(p); }
  __device__ __forceinline__ int v_stream() const { return kInputs + has_highway<Cell>(in_); }
  __device__ __forceinline__ const T* u(int k) const {
    return static_cast<const T*>(in_.u.data) + u_.at + k * in_.u.gate_stride + column_.o;
  }
  __device__ __forceinline__ const T* highway() const {
    return in_.shape.K == kInputs + 1 ? u(kInputs) : static_cast<const T*>(in_.x.data) + x_.at + column_.o;
  }
  __device__ __forceinline__ const T* v(int k) const {
    return static_cast<const T*>(in_.v.data) + v_.at + k * in_.v.gate_stride + column_.o;
  }
  __device__ __forceinline__ const uint8_t* flags() const { return flags_ + t_ * in_.shape.B; }

  const ScanInputs& in_;
  const ScanTables& tables_;
  const Column& column_;
  Walk u_, x_, v_;
  const uint8_t* flags_;
  int64_t t_;
};

// What does not change over time: the rows of weight_c and bias, the dropout mask.
template <class T, int kWide, class Cell>
struct Constants {
  static constexpr int kGates = Cell::kGates;
  Compute<T> w[kGates][kWide], b[kGates][kWide], m[kWide];

  __device__ Constants(const ScanInputs& in, const Column& column) {
#pragma unroll
    for (int k = 0; k < kGates; ++k) {
      load_wide<T, kWide>(static_cast<const T*>(in.weight_c) + k * in.shape.O + column.o, w[k]);
      load_wide<T, kWide>(static_cast<const T*>(in.bias) + k * in.shape.O + column.o, b[k]);
    }
#pragma unroll
    for (int i = 0; i < kWide; ++i) m[i] = 1;
    if (in.drop_mask) load_wide<T, kWide>(static_cast<const T*>(in.drop_mask) + column.b * in.shape.O + column.o, m);
  }
};

}  // namespace fastrnn::cuda
