// Kernels of the SRU's scan; kernels.h holds their contracts.
//
// One thread owns one column (row of the batch, feature), or two neighbours of a half type, and walks
// through time with c in a register. Threads share nothing but the cache: no barrier, no atomics, hence the
// same bits in every run. What hides the latency of memory is not the number of threads (a layer has few
// columns) but the steps that each has on their way: every thread copies the values of the next
// (kStages - 1) * kChunk steps into its own slots of shared memory and waits for the oldest alone.
//
// A copy has 4 bytes at least. A thread that owns one value of a half type copies the aligned word that holds
// it, which its neighbour wants anyway: no memory beyond the word is touched, and none of another allocation.
#pragma once
#include "cuda/scan/ring.cuh"
#include "params/scan.h"

namespace fastrnn::cuda {

template <class T, int kWide, template <class> class CellOf>
__global__ void __launch_bounds__(kScanBlock<T>, 1)
    scan_forward_kernel(const ScanForwardParams p, const ScanTables tables) {
  using A = Compute<T>;
  using Cell = CellOf<ScanMath<A>>;
  FASTRNN_DYNAMIC_SHARED(memory);
  const ScanShape& s = p.in.shape;
  Column column;
  if (!find_column<kWide>(s, tables, false, column)) return;
  Ring<T, kWide> ring(memory, input_streams<Cell>(p.in), 0);
  InputWalk<T, kWide, Cell> ahead(p.in, tables, column), here(p.in, tables, column);
  Walk row = walk(tables, column, s.B * s.O, s.O);
  const Constants<T, kWide, Cell> constant(p.in, column);
  A c[kWide];
  load_wide<T, kWide>(static_cast<const T*>(p.in.c0) + column.b * s.O + column.o, c);

  int64_t fetched = 0;
  const auto fetch_chunk = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (fetched < column.steps) {
        ahead.fetch(ring, stage * kChunk + i);
        ahead.next();
      }
      ++fetched;
    }
    commit_copies();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) fetch_chunk(stage);

  int64_t t = column.t;
  int stage = 0, free = kStages - 1;
  for (int64_t first = 0; first < column.steps; first += kChunk) {
    wait_copies<kStages - 2>();  // this stage's; only the thread itself reads them
    fetch_chunk(free);           // into the stage whose values the last turn has used up
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (first + i >= column.steps) break;
      A u[Cell::kInputs][kWide], x[kWide], w[Cell::kGates][kWide], h[kWide];
      const uint8_t flags = here.read(ring, stage * kChunk + i, constant.w, u, x, w);
      const bool pad = flags & StepFlags::kPad, begins = flags & StepFlags::kBegins;
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        A input[Cell::kInputs], weight[Cell::kGates], bias[Cell::kGates];
        pick_value<Cell::kInputs>(input, u, j);
        pick_value<Cell::kGates>(weight, w, j), pick_value<Cell::kGates>(bias, constant.b, j);
        A next;
        c[j] = begins ? A(0) : c[j];
        Cell::forward(input, weight, bias, x[j], constant.m[j], c[j], next, h[j]);
        c[j] = pad ? c[j] : next;
        h[j] = pad ? A(0) : h[j];
      }
      const int64_t at = row.at + column.o;
      store_wide<T, kWide>(static_cast<T*>(p.h) + at, h);
      if (p.cells) store_wide<A, kWide>(static_cast<A*>(p.cells) + at, c);
      here.next();
      t += column.towards;
      if (first + i + 1 < column.steps) row.next(tables, column, t);
    }
    free = stage;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  wait_copies<0>();
  store_wide<T, kWide>(static_cast<T*>(p.c) + column.b * s.O + column.o, c);
}

template <class T, int kWide, template <class> class CellOf>
__global__ void __launch_bounds__(kScanBlock<T>, 1)
    scan_backward_kernel(const ScanBackwardParams p, const ScanTables tables, Compute<T>* partials) {
  using A = Compute<T>;
  using Cell = CellOf<ScanMath<A>>;
  FASTRNN_DYNAMIC_SHARED(memory);
  const ScanShape& s = p.in.shape;
  Column column;
  if (!find_column<kWide>(s, tables, true, column)) return;
  const int inputs = input_streams<Cell>(p.in), streams = inputs + (p.grad_h.data != nullptr);
  Ring<T, kWide> ring(memory, streams, cell_streams(p));
  InputWalk<T, kWide, Cell> ahead(p.in, tables, column), here(p.in, tables, column);
  Walk row_ahead = walk(tables, column, s.B * s.O, s.O), row = row_ahead;
  Walk dh_ahead = walk(tables, column, p.grad_h.step_stride, p.grad_h.row_stride), dh_here = dh_ahead;
  const T* grad_h = static_cast<const T*>(p.grad_h.data) + column.o;
  const A* cells = static_cast<const A*>(p.cells) + column.o;
  const A* grad_cells = static_cast<const A*>(p.grad_cells) + column.o;  // read where they are given
  const Constants<T, kWide, Cell> constant(p.in, column);
  const int64_t state = column.b * s.O + column.o;
  A c0[kWide], dc[kWide] = {}, sums[2 * Cell::kGates][kWide] = {};
  load_wide<T, kWide>(static_cast<const T*>(p.in.c0) + state, c0);
  if (p.grad_c) load_wide<T, kWide>(static_cast<const T*>(p.grad_c) + state, dc);

  int64_t fetched = 0, t_ahead = column.t;
  const auto fetch_chunk = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (fetched < column.steps) {
        const int slot = stage * kChunk + i;
        ahead.fetch(ring, slot);
        if (p.grad_h.data) ring.fetch(slot, inputs, grad_h + dh_ahead.at);
        if (p.grad_cells) ring.fetch_cell(slot, 1, grad_cells + row_ahead.at);
        ahead.next();
        if (fetched + 1 < column.steps) {
          // c before this step is c of the row that comes next on the way back.
          t_ahead += column.towards;
          row_ahead.next(tables, column, t_ahead);
          dh_ahead.next(tables, column, t_ahead);
          ring.fetch_cell(slot, 0, cells + row_ahead.at);
        }
      }
      ++fetched;
    }
    commit_copies();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) fetch_chunk(stage);

  int64_t t = column.t;
  int stage = 0, free = kStages - 1;
  for (int64_t first = 0; first < column.steps; first += kChunk) {
    wait_copies<kStages - 2>();  // this stage's; only the thread itself reads them
    fetch_chunk(free);           // into the stage whose values the last turn has used up
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (first + i >= column.steps) break;
      const int slot = stage * kChunk + i;
      const bool last = first + i + 1 == column.steps;
      A u[Cell::kInputs][kWide], x[kWide], w[Cell::kGates][kWide], dh[kWide] = {}, c_prev[kWide], dx[kWide];
      A du[Cell::kInputs][kWide], dv[Cell::kGates][kWide];
      const uint8_t flags = here.read(ring, slot, constant.w, u, x, w);
      const bool pad = flags & StepFlags::kPad, begins = flags & StepFlags::kBegins;
      if (p.grad_h.data) ring.read(slot, inputs, reinterpret_cast<uintptr_t>(grad_h + dh_here.at), dh);
      if (!last) ring.read_cell(slot, 0, c_prev);
      if (p.grad_cells) {
        A more[kWide];
        ring.read_cell(slot, 1, more);
#pragma unroll
        for (int j = 0; j < kWide; ++j) dc[j] += more[j];
      }
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        const A before = begins ? A(0) : last ? c0[j] : c_prev[j];
        A input[Cell::kInputs], weight[Cell::kGates], bias[Cell::kGates];
        pick_value<Cell::kInputs>(input, u, j);
        pick_value<Cell::kGates>(weight, w, j), pick_value<Cell::kGates>(bias, constant.b, j);
        A grad[Cell::kInputs], next;
        Cell::backward(input, weight, bias, x[j], constant.m[j], before, dh[j], dc[j], grad, dx[j], next);
        dc[j] = begins ? A(0) : pad ? dc[j] : next;
        dx[j] = pad ? A(0) : dx[j];
#pragma unroll
        for (int k = 0; k < Cell::kInputs; ++k) du[k][j] = pad ? A(0) : grad[k];
#pragma unroll
        for (int k = 0; k < Cell::kGates; ++k) {  // whose inputs are the last ones
          constexpr int first = Cell::kInputs - Cell::kGates;
          dv[k][j] = pad ? A(0) : grad[first + k] * before;
          sums[k][j] += dv[k][j];
          sums[Cell::kGates + k][j] += du[first + k][j];
        }
      }
      if (p.grad_u) {
        T* to = static_cast<T*>(p.grad_u) + row.at * s.K + column.o;
#pragma unroll
        for (int k = 0; k < Cell::kInputs; ++k) store_wide<T, kWide>(to + k * s.O, du[k]);
        if (s.K == Cell::kInputs + 1) store_wide<T, kWide>(to + Cell::kInputs * s.O, dx);
      }
      if (p.grad_x) {
#pragma unroll
        for (int j = 0; j < kWide; ++j) dx[j] *= static_cast<A>(p.in.scale);
        store_wide<T, kWide>(static_cast<T*>(p.grad_x) + row.at + column.o, dx);
      }
      if (p.grad_v) {
        T* to = static_cast<T*>(p.grad_v) + row.at * Cell::kGates + column.o;
#pragma unroll
        for (int k = 0; k < Cell::kGates; ++k) store_wide<T, kWide>(to + k * s.O, dv[k]);
      }
      here.next();
      t += column.towards;
      if (!last) {
        row.next(tables, column, t);
        dh_here.next(tables, column, t);
      }
    }
    free = stage;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  wait_copies<0>();
  if (p.grad_c0) store_wide<T, kWide>(static_cast<T*>(p.grad_c0) + state, dc);
  if (partials) {
#pragma unroll
    for (int k = 0; k < 2 * Cell::kGates; ++k)
      store_wide<A, kWide>(partials + (column.b * 2 * Cell::kGates + k) * s.O + column.o, sums[k]);
  }
}

// step_flags of all directions, steps and rows, (D,L,B): a thread writes a word of them.
constexpr int kFlagsAThread = 4;

__global__ void scan_flags_kernel(const uint8_t* pads, const uint8_t* resets, int D, int64_t L, int64_t B,
                                  uint8_t* flags) {
  const int64_t count = L * B, first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kFlagsAThread;
  for (int64_t i = first; i < first + kFlagsAThread && i < D * count; ++i) {
    flags[i] = step_flags(pads, resets, L, B, static_cast<int>(i / count), i % count);
  }
}

// A block adds up 32 columns of (B,2*gates*O): each of its warps every eighth row, then one warp the eight sums.
constexpr int kSumColumns = 32, kSumRows = 8;

template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    scan_sums_kernel(int64_t B, int64_t O, int gates, const Compute<T>* partials, T* grad_weight_c, T* grad_bias) {
  FASTRNN_SHARED(double, part, [kSumRows][kSumColumns]);
  const int lane = static_cast<int>(threadIdx.x) % kSumColumns, first = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + lane, columns = 2 * gates * O;
  double sum = 0;
  if (column < columns) {
    for (int64_t b = first; b < B; b += kSumRows) sum += static_cast<double>(partials[b * columns + column]);
  }
  part[first][lane] = sum;
  __syncthreads();  // every row's sum is there
  if (first != 0 || column >= columns) return;
  for (int i = 1; i < kSumRows; ++i) sum += part[i][lane];
  T* to = column < gates * O ? grad_weight_c + column : grad_bias + (column - gates * O);
  store(to, static_cast<Compute<T>>(sum));
}

}  // namespace fastrnn::cuda
