// How much of the recurrent weights a warp keeps in registers: the one table that the geometry and the kernels'
// instances share. No CUDA here.
//
// Units come in tiles of 16, the rows of a tensor core product. A warp multiplies for one tile of units, all of
// its gates, over up to max_tiles tiles of K: gates * max_tiles * (half types 4, else 8) registers. With
// about 100 more for everything else, 255 a thread are the limit: 128 to 144 fit without spills.
#pragma once
#include <algorithm>

#include "cells/cell.h"
#include "persistent.h"

namespace fastrnn::cuda {

constexpr int kTileUnits = 16;
constexpr int kTileRows = 8;                             // batch rows of a product
constexpr int kInputTiles = kMaxProjected / kTileUnits;  // of K, where the forward kernel multiplies x
constexpr int kGridWarps = 8;                            // of a CTA in the grid tier: each takes an eighth of K
constexpr int kMaxThreads = 256;
constexpr int kMaxWarps = kMaxThreads / 32;

constexpr int max_tiles(CellKind cell, Precision precision, Tier tier) {
  const bool half = precision == Precision::kBFloat16 || precision == Precision::kHalf;
  switch (cell) {
    case CellKind::kLstm:
      return half ? 8 : precision == Precision::kFloat32 && tier == Tier::kGrid ? 3 : 4;
    case CellKind::kGru:
      return half ? (tier == Tier::kOneCta ? 8 : tier == Tier::kCluster ? 10 : 12) : (tier == Tier::kOneCta ? 6 : 5);
    default:
      return half ? (tier == Tier::kOneCta ? 8 : 16) : 8;
  }
}

// For device code, which cannot call the function.
template <CellKind cell, Precision precision, Tier tier>
inline constexpr int kMaxTiles = max_tiles(cell, precision, tier);

// 32-bit words that a tile's 16 values of 8 rows take in a lane.
constexpr int words_of(Precision precision) {
  return precision == Precision::kBFloat16 || precision == Precision::kHalf ? 2 : 4;
}

// A CTA's dynamic shared memory: 16 bytes for the failure word, forward's biases [Gr][units of the CTA], then one
// CTA: the two buffers of the operand; grid: the parts of the sums; cluster, whose two barriers are the first 16
// bytes: both, and then the weights that have no registers.
FASTRNN_HD constexpr int front_words(int bias_gates, int units_per_cta) { return 4 + bias_gates * units_per_cta; }

constexpr int kLineBytes = 128;  // a flag has a line of the L2 cache to itself

// Bytes of one warp's weights for a tile of K, as they wait in shared memory: its registers' words.
inline int64_t kept_bytes(CellKind cell, Precision precision) {
  return static_cast<int64_t>(gates_of(cell)) * 32 * 2 * words_of(precision) * 4;
}
// Every warp's part of a sum of one tile of rows.
constexpr int64_t parts_bytes(int warps, int sums) { return static_cast<int64_t>(warps) * sums * 32 * 16; }

// The grid tier's workspace: the error word, a flag a replica, then each replica's two operand buffers.
constexpr int64_t operand_words(int unit_tiles, int n_tiles, int operand_gates, Precision precision) {
  return static_cast<int64_t>(n_tiles) * operand_gates * unit_tiles * 32 * words_of(precision);
}
constexpr int64_t flags_bytes(int replicas_of_all) { return static_cast<int64_t>(1 + replicas_of_all) * kLineBytes; }

// Cluster: what every CTA of one receives in a step.
inline int64_t cluster_operand_bytes(const PersistentGeometry& g) {
  return operand_words(g.peers * g.units_per_cta / kTileUnits, g.n_tiles,
                       g.pass == Pass::kForward ? 1 : gates_of(g.cell), g.precision) *
         4;
}

// Cluster: shared memory from the biases' end to where the kept weights begin.
inline int64_t cluster_exchange_bytes(const PersistentGeometry& g) {
  const int warps = g.threads / 32, sums = g.pass == Pass::kForward ? gates_of(g.cell) : 1;
  const int64_t parts = g.k_split == 1 ? 0 : g.n_tiles * parts_bytes(warps, sums);
  return 2 * cluster_operand_bytes(g) + parts;
}

}  // namespace fastrnn::cuda
