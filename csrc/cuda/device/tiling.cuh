// Kernels whose threads take a unit of a row each: how rows lie over a grid, and their launch.
#pragma once
#include <limits>

#include "cuda/device/launch.cuh"

namespace fastrnn::cuda {

constexpr int kBlock = 128;  // small: a step has few rows, and more blocks reach more SMs

// How the units of rows are laid over a one-dimensional grid: a block takes rows_per_block whole rows
// where they are short, or one of `chunks` pieces of a row where they are long. Directions follow each other.
struct Tiling {
  int64_t units;
  int blocks_per_direction;
  int width;  // threads a row
  int chunks;
  int rows_per_block;
};

struct Place {
  int64_t row, unit;
  int direction;
};

__device__ __forceinline__ Place locate(const Tiling& tiling) {
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int direction = block >= tiling.blocks_per_direction;
  const int in_direction = block - direction * tiling.blocks_per_direction;
  const int piece = in_direction / tiling.chunks, chunk = in_direction - piece * tiling.chunks;
  const int row_in_block = thread / tiling.width, column = thread - row_in_block * tiling.width;
  return {static_cast<int64_t>(piece) * tiling.rows_per_block + row_in_block,
          static_cast<int64_t>(chunk) * tiling.width + column, direction};
}

__device__ __forceinline__ int64_t pick(const int64_t (&of_direction)[2], int direction) {
  return direction ? of_direction[1] : of_direction[0];
}

// False where the grid would have more blocks than an int counts: no GPU's memory holds such a step.
inline bool tile(int64_t rows, int64_t units, int directions, Tiling& tiling) {
  tiling.units = units;
  tiling.chunks = static_cast<int>((units + kBlock - 1) / kBlock);
  // Whole warps where a row is cut into pieces, so that no piece begins inside a cache line.
  const int64_t even = (units + tiling.chunks - 1) / tiling.chunks;
  tiling.width = static_cast<int>(tiling.chunks > 1 ? (even + 31) / 32 * 32 : even);
  tiling.rows_per_block = kBlock / tiling.width;
  const int64_t blocks = (rows + tiling.rows_per_block - 1) / tiling.rows_per_block * tiling.chunks;
  tiling.blocks_per_direction = static_cast<int>(blocks);
  return blocks * directions <= std::numeric_limits<int>::max();
}

template <class... Params, class... Args>
int launch_rows(void (*kernel)(Params...), int64_t rows, int64_t units, int directions, void* stream, Args... args) {
  if (rows == 0 || units == 0) return cudaSuccess;
  Tiling tiling;
  if (!tile(rows, units, directions, tiling)) return cudaErrorInvalidValue;
  return launch(kernel, static_cast<int64_t>(directions) * tiling.blocks_per_direction,
                tiling.width * tiling.rows_per_block, stream, args..., tiling);
}

}  // namespace fastrnn::cuda
