// Kernels of the stepwise tier; kernels.h holds their contracts.
//
// One thread computes one hidden unit of one row, and neighbouring threads neighbouring units, so that
// every load and store of a warp is one contiguous piece. Threads do not talk to each other: no shared
// memory, no barrier, no atomics, hence the same bits in every run. Offsets are 64-bit throughout.
#pragma once
#include <type_traits>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/device/tiling.cuh"
#include "cuda/device/types.cuh"
#include "cuda/stepwise/kernels.h"

namespace fastrnn::cuda {

// Where gate g of a cell lies in a row of dgates, see BackwardStep.
template <class Cell>
__device__ __forceinline__ constexpr int gradient_slot(int g) {
  return Cell::kSplit ? (g == Cell::kGates - 1 ? 0 : g + 1) : g;
}

template <class Cell>
inline constexpr int kRecurrentGates = Cell::kGates + Cell::kSplit;  // Gr

// Whether a cell's saved gates are what the products made, with its activations, and as many.
template <class Cell, class M>
inline constexpr bool kActivates =
    Cell::kSaved == kRecurrentGates<Cell> && std::is_same_v<typename Cell::Gates, PlainGates<M>>;

template <template <class> class CellOf, class T>
__global__ void __launch_bounds__(kBlock)
    forward_kernel(const StepShape shape, const ForwardStep p, const Tiling tiling) {
  using A = Compute<T>;
  using Cell = CellOf<ScalarMath<A>>;
  constexpr int G = Cell::kGates, S = Cell::kSaved;
  const Place at = locate(tiling);
  if (at.unit >= shape.H || at.row >= pick(p.rows.count, at.direction)) return;
  const int64_t H = shape.H, u = at.unit, d = at.direction, t = pick(p.rows.t, at.direction);
  if (!p.table.runs(t, at.row)) return;
  const bool begins = p.table.begins(t, at.direction, at.row);
  const int64_t state = (d * shape.B + at.row) * H + u;  // in (D,B,H)
  const int64_t in_direction = pick(p.rows.first, at.direction) + at.row;
  const int64_t row = d * shape.N + in_direction;  // in (D,N,.)
  const T* gx = static_cast<const T*>(p.gx) + row * p.gx_stride + u;
  const A* rec = static_cast<const A*>(p.rec) + (d * shape.B + at.row) * G * H + u;
  const A* bias = p.bias ? static_cast<const A*>(p.bias) + d * kRecurrentGates<Cell> * H + u : nullptr;

  A pre[G], apart = 0;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    pre[g] = load(gx + g * H);
    const A sum = begins ? A(0) : rec[g * H];
    if (Cell::kSplit && g == G - 1) {
      apart = sum;
    } else {
      pre[g] += sum;
    }
    if (bias) pre[g] += bias[g * H];
  }
  if (Cell::kSplit && bias) apart += bias[G * H];

  A c_prev = 0, h_prev = 0, c = 0, h = 0, saved[S ? S : 1];
  if (!begins) {
    if constexpr (Cell::kHasCell) c_prev = static_cast<const A*>(p.c)[state];
    if constexpr (kReadsH<Cell>) {
      if (Cell::kSplit || p.y) h_prev = static_cast<const A*>(p.h_state)[state];
    }
  }
  const UnitAt where = {at.direction, t, in_direction, u, 1};
  forward_unit<Cell>(where, pre, apart, h_prev, c_prev, saved, c, h);
  if constexpr (Cell::State::kKeepsH) {
    if (p.y) Cell::State::output_forward(where, h_prev, h);
  }

  if constexpr (Cell::kHasCell) {
    static_cast<A*>(p.c)[state] = c;
    if (p.cells) static_cast<A*>(p.cells)[row * H + u] = c;
  }
  if constexpr (kReadsH<Cell>) {
    if (Cell::kSplit || p.y) static_cast<A*>(p.h_state)[state] = h;
  }
  store(static_cast<T*>(p.h) + state, h);
  if (p.y) store(static_cast<T*>(p.y) + (in_direction * shape.D + d) * H + u, h);
  if constexpr (S > 0) {
    if (p.gates) {
      T* gates = static_cast<T*>(p.gates) + row * S * H + u;
#pragma unroll
      for (int s = 0; s < S; ++s) store(gates + s * H, saved[s]);
    }
  }
}

template <template <class> class CellOf, class T>
__global__ void __launch_bounds__(kBlock)
    backward_kernel(const StepShape shape, const BackwardStep p, const Tiling tiling) {
  using A = Compute<T>;
  using Cell = CellOf<ScalarMath<A>>;
  constexpr int G = Cell::kGates, S = Cell::kSaved, Gr = kRecurrentGates<Cell>;
  const Place at = locate(tiling);
  if (at.unit >= shape.H || at.row >= pick(p.rows.count, at.direction)) return;
  const int64_t H = shape.H, u = at.unit, d = at.direction, t = pick(p.rows.t, at.direction);
  const int64_t state = (d * shape.B + at.row) * H + u;
  A* const direct = static_cast<A*>(p.direct);
  if (!p.table.runs(t, at.row)) {
    if (direct) direct[state] += static_cast<const A*>(p.dh)[state];
    return;
  }
  const int64_t in_direction = pick(p.rows.first, at.direction) + at.row;
  const int64_t row = d * shape.N + in_direction;
  const int64_t output = (in_direction * shape.D + d) * H + u;  // in (N,D*H)
  A dh = 0, dc = 0;
  const bool ends = p.table.ends(t, at.direction, at.row);
  if (!ends || p.dh_is_whole) dh = static_cast<const A*>(p.dh)[state];
  if (!ends) {
    if (direct) dh += direct[state];
    if constexpr (Cell::kHasCell) dc = static_cast<const A*>(p.dc)[state];
  }
  if (p.grad_y) dh += load(static_cast<const T*>(p.grad_y) + output);
  if constexpr (Cell::kHasCell) {
    if (p.grad_cells) dc += static_cast<const A*>(p.grad_cells)[row * H + u];
  }

  const bool has_previous = p.table.runs(pick(p.previous.t, at.direction), at.row);
  const int64_t previous = pick(p.previous.first, at.direction) + at.row;

  A saved[S ? S : 1] = {};
  if constexpr (S > 0) {
    const T* gates = static_cast<const T*>(p.gates) + row * S * H + u;
#pragma unroll
    for (int s = 0; s < S; ++s) saved[s] = load(gates + s * H);
  }
  const bool begins = p.table.begins(t, at.direction, at.row);
  A c_prev = 0, c = 0, h_prev = 0, h = 0;
  if constexpr (Cell::kHasCell) {
    const A* cells = static_cast<const A*>(p.cells);
    c = cells[row * H + u];
    if (!begins) {
      c_prev = has_previous ? cells[(d * shape.N + previous) * H + u] : load(static_cast<const T*>(p.c0) + state);
    }
  }
  if constexpr (Cell::kSplit) {
    if (!begins) {
      h_prev = has_previous ? load(static_cast<const T*>(p.y) + (previous * shape.D + d) * H + u)
                            : load(static_cast<const T*>(p.h0) + state);
    }
  }
  if constexpr (kNeedsOutput<Cell>) h = load(static_cast<const T*>(p.y) + output);

  const UnitAt where = {at.direction, t, in_direction, u, 1};
  A dpre[G], drec = 0, dc_prev = 0, dh_prev = 0, dh_kept = 0;
  if constexpr (Cell::State::kKeepsH) {
    if (!p.dh_is_whole) Cell::State::output_backward(where, dh, dh_kept);
  }
  backward_unit<Cell>(where, saved, c_prev, c, h_prev, h, dh, dc, dpre, drec, dc_prev, dh_prev);
  if constexpr (Cell::State::kKeepsH) dh_prev += dh_kept;

  T* dgates = static_cast<T*>(p.dgates) + row * Gr * H + u;
#pragma unroll
  for (int g = 0; g < G; ++g) store(dgates + gradient_slot<Cell>(g) * H, dpre[g]);
  if constexpr (Cell::kSplit) store(dgates + G * H, drec);
  if (direct) direct[state] = dh_prev;
  if constexpr (Cell::kHasCell) {
    static_cast<A*>(p.dc)[state] = dc_prev;
    if (p.m) store(static_cast<T*>(p.m) + row * H + u, Cell::output(saved, c));
  }
}

template <template <class> class CellOf, class T>
__global__ void __launch_bounds__(kBlock)
    activate_kernel(const StepShape shape, T* pre_and_saved, const Compute<T>* bias, const Tiling tiling) {
  using A = Compute<T>;
  using Cell = CellOf<ScalarMath<A>>;
  constexpr int Gr = kRecurrentGates<Cell>;
  static_assert(kActivates<Cell, ScalarMath<A>>);
  const Place at = locate(tiling);
  if (at.unit >= shape.H || at.row >= shape.N) return;
  T* gates = pre_and_saved + (at.direction * shape.N + at.row) * Gr * shape.H + at.unit;
  A pre[Gr];
#pragma unroll
  for (int g = 0; g < Gr; ++g) {
    pre[g] = load(gates + g * shape.H);
    if (bias) pre[g] += bias[(at.direction * Gr + g) * shape.H + at.unit];
  }
  // The gates depend on neither state; what the cell makes of these zeros is dropped.
  A saved[Gr], c = 0, h = 0;
  Cell::forward(pre, pre[Gr - 1], A(0), A(0), saved, c, h);
#pragma unroll
  for (int g = 0; g < Gr; ++g) store(gates + g * shape.H, saved[g]);
}

// The state stage behind a projection: the output's half, where h is whole.
template <template <class> class CellOf, class T>
__global__ void __launch_bounds__(kBlock)
    store_output_kernel(const StepShape shape, const StepRows rows, const RowTable table, const T* h,
                        Compute<T>* h_state, T* y, T* hn, const Tiling tiling) {
  using State = typename CellOf<ScalarMath<Compute<T>>>::State;
  const Place at = locate(tiling);
  if (at.unit >= tiling.units || at.row >= pick(rows.count, at.direction)) return;
  const int64_t t = pick(rows.t, at.direction);
  if (!table.runs(t, at.row)) return;
  const int64_t row = pick(rows.first, at.direction) + at.row;
  const int64_t state = (at.direction * shape.B + at.row) * tiling.units + at.unit;
  if constexpr (State::kKeepsH) {
    Compute<T> out = load(h + state);
    const Compute<T> h_prev = table.begins(t, at.direction, at.row) ? Compute<T>(0) : h_state[state];
    State::output_forward({at.direction, t, row, at.unit, 1}, h_prev, out);
    h_state[state] = out;
    store(hn + state, out);
    store(y + (row * shape.D + at.direction) * tiling.units + at.unit, out);
    return;
  }
  y[(row * shape.D + at.direction) * tiling.units + at.unit] = hn[state] = h[state];
}

template <template <class> class CellOf, class T>
__global__ void __launch_bounds__(kBlock)
    sum_output_gradient_kernel(const StepShape shape, const StepRows rows, const RowTable table, const T* grad_y,
                               const Compute<T>* dh, Compute<T>* direct, T* out, const Tiling tiling) {
  using State = typename CellOf<ScalarMath<Compute<T>>>::State;
  const Place at = locate(tiling);
  const int64_t P = tiling.units, t = pick(rows.t, at.direction);
  if (at.unit >= P || at.row >= pick(rows.count, at.direction)) return;
  const int64_t row = pick(rows.first, at.direction) + at.row;
  const int64_t state = (at.direction * shape.B + at.row) * P + at.unit;
  if (!table.runs(t, at.row)) {
    if (direct) direct[state] += dh[state];
    return;
  }
  Compute<T> sum = 0;
  if (!table.ends(t, at.direction, at.row)) sum = direct ? dh[state] + direct[state] : dh[state];
  if (grad_y) sum += load(grad_y + (row * shape.D + at.direction) * P + at.unit);
  Compute<T> kept = 0;
  if constexpr (State::kKeepsH) State::output_backward({at.direction, t, row, at.unit, 1}, sum, kept);
  if (direct) direct[state] = kept;
  store(out + (at.direction * shape.N + row) * P + at.unit, sum);
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    previous_outputs_kernel(const StepShape shape, const RowTable table, const T* y, const T* h0, T* out,
                            const Tiling tiling) {
  const Place at = locate(tiling);
  const int64_t width = tiling.units, d = at.direction;
  if (at.unit >= width || at.row >= (table.row_offsets ? table.T * table.B : shape.N)) return;
  const int64_t t = at.row / table.B, b = at.row - t * table.B, before = d ? t + 1 : t - 1;
  T value{};
  if (!table.runs(t, b)) {
    if (!table.row_offsets) out[(d * shape.N + at.row) * width + at.unit] = value;
    return;
  }
  if (!table.begins(t, at.direction, b)) {
    value = table.runs(before, b) ? y[(table.row(before, b) * shape.D + d) * width + at.unit]
                                  : h0[(d * shape.B + b) * width + at.unit];
  }
  out[(d * shape.N + table.row(t, b)) * width + at.unit] = value;
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    initial_gradient_kernel(const StepShape shape, const RowTable table, const Compute<T>* a, const Compute<T>* b,
                            T* out, const Tiling tiling) {
  const Place at = locate(tiling);
  if (at.unit >= tiling.units || at.row >= shape.B) return;
  const int64_t i = (at.direction * shape.B + at.row) * tiling.units + at.unit;
  const bool dropped = at.direction == 0 && table.cut(0, at.row);
  store(out + i, dropped ? Compute<T>(0) : b ? a[i] + b[i] : a[i]);
}

}  // namespace fastrnn::cuda
