// What the kernels of stages.h have in common: where a block is at work, and sums over its row.
#pragma once
#include <algorithm>

#include "cells/policies/stages.h"
#include "cuda/device/async_copy.cuh"
#include "cuda/device/tiling.cuh"
#include "cuda/device/types.cuh"
#include "cuda/stepwise/stages.h"

namespace fastrnn::cuda {

// Of a block that takes a whole row; kernels' bounds say one block an SM, else the compiler spills to fit more.
constexpr int kMostThreads = 256;

// How rows lie over a one-dimensional grid: a block of whole warps takes one of `chunks` pieces of a row.
struct Pieces {
  int64_t rows;  // of a direction
  int chunks, threads;

  Pieces(int64_t rows, int64_t units, bool whole) : rows(rows) {
    const int64_t even = (units + 31) / 32 * 32;
    threads = static_cast<int>(std::min<int64_t>(even, whole ? kMostThreads : kBlock));
    chunks = whole ? 1 : static_cast<int>((units + threads - 1) / threads);
  }
  int64_t blocks(int directions) const { return rows * chunks * directions; }
};

// A block's row and the first of its thread's units; the next one is `stride` further.
struct PieceAt {
  int64_t row, unit, stride;
  int direction;
};
__device__ __forceinline__ PieceAt piece_at(const Pieces& p) {
  const int64_t block = blockIdx.x, row = block / p.chunks;
  const int64_t chunk = block - row * p.chunks;
  const int direction = row >= p.rows;
  return {row - direction * p.rows, chunk * p.threads + threadIdx.x, static_cast<int64_t>(p.chunks) * p.threads,
          direction};
}

template <class... Params, class... Args>
int launch_pieces(void (*kernel)(Params...), int64_t rows, int64_t units, bool whole, int directions, void* stream,
                  Args... args) {
  if (rows == 0 || units == 0) return cudaSuccess;
  const Pieces pieces(rows, units, whole);
  return launch(kernel, pieces.blocks(directions), pieces.threads, stream, args..., pieces);
}

// v[k] = the sum over the block of everyone's v[k], in one order: the same for all, and in every run.
template <int K, class A>
__device__ void block_sums(A (&v)[K]) {
  FASTRNN_SHARED(A, parts, [K * (kMostThreads / 32)]);
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    for (int apart = 16; apart > 0; apart /= 2) v[k] += __shfl_xor_sync(~0u, v[k], apart);
  }
  __syncthreads();  // the sums before these have been read
  if (threadIdx.x % 32 == 0) {
    for (int k = 0; k < K; ++k) parts[warp * K + k] = v[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) {
    v[k] = 0;
    for (int w = 0; w < warps; ++w) v[k] += parts[w * K + k];
  }
}

// Of the values value(unit, g) of a block's row, g < G.
template <int G, class A, class Value>
__device__ RowMoments<A> block_moments(int64_t units, double eps, Value value) {
  const A count = static_cast<A>(units * G);
  A mean[1] = {}, squares[1] = {};
  for (int64_t u = threadIdx.x; u < units; u += blockDim.x) {
#pragma unroll
    for (int g = 0; g < G; ++g) mean[0] += value(u, g);
  }
  block_sums(mean);
  mean[0] /= count;
  for (int64_t u = threadIdx.x; u < units; u += blockDim.x) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const A away = value(u, g) - mean[0];
      squares[0] += away * away;
    }
  }
  block_sums(squares);
  return {mean[0], static_cast<A>(1 / sqrt(static_cast<double>(squares[0] / count) + eps))};
}

// Of unit u's first gate in a row by heads of `gates` gates; the next gate is H / heads further.
__device__ __forceinline__ int64_t by_heads(const StageLayer& s, int gates, int d, int64_t row, int64_t u) {
  const int64_t size = s.shape.H / s.on.heads, head = s.on.heads == 1 ? 0 : u / size;
  return (((d * s.on.heads + head) * s.shape.B + row) * gates - head) * size + u;
}
template <class T>
__device__ __forceinline__ Compute<T> vector_at(const void* vector, int64_t i) {
  return load(static_cast<const T*>(vector) + i);
}
// Of row `in_direction` of N, batch row `row` of step t: a part that stays, feature `i`.
template <class T>
__device__ __forceinline__ Compute<T> keep_at(const StageLayer& s, const TensorRows& keep, int64_t t, int64_t row,
                                              int64_t in_direction, int64_t i) {
  const int64_t at =
      s.table.row_offsets ? in_direction * keep.row_stride : t * keep.step_stride + row * keep.row_stride;
  return load(static_cast<const T*>(keep.data) + at + i);
}
template <class T>
__device__ __forceinline__ Compute<T> mask_at(const StageLayer& s, int64_t state) {
  return s.masks.recurrent ? load(static_cast<const T*>(s.masks.recurrent) + state) : Compute<T>(1);
}

template <template <class> class Cell>
struct StagesTag {
  template <class M>
  using Of = Cell<M>;
};

// f(StagesTag<Cell>, TypeTag<T>)
template <class F>
int with_stages(const StepShape& shape, F f) {
  return with_type(shape.dtype, [&](auto type) {
    switch (shape.cell) {
      case CellKind::kLstm:
        return f(StagesTag<LstmStages>{}, type);
      case CellKind::kGru:
        return f(StagesTag<GruStages>{}, type);
      case CellKind::kRnnTanh:
        return f(StagesTag<RnnTanhStages>{}, type);
      case CellKind::kRnnRelu:
        return f(StagesTag<RnnReluStages>{}, type);
    }
    return static_cast<int>(cudaErrorInvalidValue);
  });
}

inline int64_t longest(const StepRows& rows, int directions) {
  return directions == 1 ? rows.count[0] : std::max(rows.count[0], rows.count[1]);
}

}  // namespace fastrnn::cuda
