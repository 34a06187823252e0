// What the kernels of stages.h have in common: where a block is at work, and sums over its row.
#pragma once
#include "cells/policies/stages.h"
#include "cuda/device/async_copy.cuh"
#include "cuda/device/tiling.cuh"
#include "cuda/device/types.cuh"
#include "cuda/stepwise/instances.cuh"
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
// The same at a step, where rows are those of the batch.
struct RowAt : PieceAt {
  int64_t t;
  bool exists;                          // whether the direction has so many rows at this step
  int64_t of_direction, of_all, state;  // where it lies in a direction's N rows, in (D,N,.), and in (D,B,.)
};
__device__ __forceinline__ PieceAt piece_at(const Pieces& p) {
  const int64_t block = blockIdx.x, row = block / p.chunks;
  const int64_t chunk = block - row * p.chunks;
  const int direction = row >= p.rows;
  return {row - direction * p.rows, chunk * p.threads + threadIdx.x, static_cast<int64_t>(p.chunks) * p.threads,
          direction};
}

__device__ __forceinline__ RowAt row_at(const StageLayer& s, const StepRows& rows, const Pieces& pieces) {
  RowAt at = {piece_at(pieces)};
  const int d = at.direction;
  at.t = pick(rows.t, d);
  at.exists = at.row < pick(rows.count, d);
  at.of_direction = pick(rows.first, d) + at.row;
  at.of_all = d * s.shape.N + at.of_direction;
  at.state = d * s.shape.B + at.row;
  return at;
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
__device__ __forceinline__ int64_t by_heads(const StageLayer& s, int gates, const RowAt& at, int64_t u) {
  const int64_t size = s.shape.H / s.on.heads, head = s.on.heads == 1 ? 0 : u / size;
  return (((at.direction * s.on.heads + head) * s.shape.B + at.row) * gates - head) * size + u;
}
template <class T>
__device__ __forceinline__ Compute<T> vector_at(const void* vector, int64_t i) {
  return load(static_cast<const T*>(vector) + i);
}
// The part that stays of a row's unit u, one of `units` a direction.
template <class T>
__device__ __forceinline__ Compute<T> keep_at(const StageLayer& s, const TensorRows& keep, const RowAt& at,
                                              int64_t units, int64_t u) {
  const int64_t row =
      s.table.row_offsets ? at.of_direction * keep.row_stride : at.t * keep.step_stride + at.row * keep.row_stride;
  return load(static_cast<const T*>(keep.data) + row + at.direction * units + u);
}
template <class T>
__device__ __forceinline__ Compute<T> mask_at(const StageLayer& s, int64_t state) {
  return s.masks.recurrent ? load(static_cast<const T*>(s.masks.recurrent) + state) : Compute<T>(1);
}

template <class F>
int with_stages(const StepShape& shape, F f) {
  return with_cell_of<LstmStages, GruStages, RnnTanhStages, RnnReluStages>(shape, f);
}

}  // namespace fastrnn::cuda
