// How much of the recurrent weights a warp keeps in registers: the one table that the geometry and the kernels'
// instances share. No CUDA here.
//
// Units come in tiles of 16, the rows of a tensor core product. A warp multiplies for one tile of units, all of
// its gates, over up to max_tiles tiles of K: gates * max_tiles * (half types 4, else 8) registers. With
// about 100 more for everything else, 255 a thread are the limit: 128 to 144 fit without spills.
#pragma once
#include <algorithm>

#include "cells/cell.h"
#include "plan/geometry.h"

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

// The cluster tier's backward: a warp multiplies tiles of outputs, two at a time as they share the operand, each over
// the whole K of its CTA: all gates of the CTA's own tiles of units. A group is such a pair of outputs over one own
// tile; so many groups a warp keeps in registers, gates * 2 * (half types 4, else 8) of them each.
constexpr int kOutputsTogether = 2;
constexpr int max_groups(CellKind cell, Precision precision) {
  const bool half = precision == Precision::kBFloat16 || precision == Precision::kHalf;
  switch (cell) {
    case CellKind::kLstm:
      return half ? 4 : 2;
    case CellKind::kGru:
      return half ? 5 : 2;
    default:
      return half ? 16 : 8;
  }
}
template <CellKind cell, Precision precision>
inline constexpr int kMaxGroups = max_groups(cell, precision);

// The groups of a warp, which has every `warps`th pair of a layer's outputs: those of pair warp, warp + warps, ...
FASTRNN_HD constexpr int groups_of(int unit_tiles, int own_tiles, int warps, int warp) {
  const int pairs = (unit_tiles + kOutputsTogether - 1) / kOutputsTogether;
  return (pairs - warp + warps - 1) / warps * own_tiles;
}
// And those that the warps before it keep in shared memory. `warp` = warps: those of all.
FASTRNN_HD constexpr int kept_groups(int unit_tiles, int own_tiles, int warps, int in_registers, int warp) {
  int kept = 0;
  for (int w = 0; w < warp; ++w) {
    const int groups = groups_of(unit_tiles, own_tiles, warps, w);
    kept += groups > in_registers ? groups - in_registers : 0;
  }
  return kept;
}

// The cluster tier's forward: `split` warps have a part of K each, of so many tiles, of which those that have no
// registers wait in shared memory.
FASTRNN_HD constexpr int part_tiles(int unit_tiles, int split) { return (unit_tiles + split - 1) / split; }
FASTRNN_HD constexpr int kept_tiles(int unit_tiles, int split, int in_registers) {
  const int tiles = part_tiles(unit_tiles, split);
  return tiles > in_registers ? tiles - in_registers : 0;
}

// 32-bit words that a tile's 16 values of 8 rows take in a lane.
constexpr int words_of(Precision precision) {
  return precision == Precision::kBFloat16 || precision == Precision::kHalf ? 2 : 4;
}

// A CTA's dynamic shared memory: 16 bytes for a cluster's two barriers, 16 for the failure word, forward's biases
// [Gr][units of the CTA], then one CTA: the two buffers of the operand; grid: the parts of the sums and copies of the
// operand; cluster: buffers and parts, backward the two buffers of the parts first; in both then the weights that
// have no registers.
constexpr int kFailureWord = 4, kBiasWord = 8;
FASTRNN_HD constexpr int front_words(int bias_gates, int units_per_cta) {
  return kBiasWord + bias_gates * units_per_cta;
}

constexpr int kLineBytes = 128;  // a flag has a line of the L2 cache to itself

// Bytes of one warp's weights for a tile of K, as they wait in shared memory: its registers' words.
inline int64_t kept_bytes(CellKind cell, Precision precision) {
  return static_cast<int64_t>(gates_of(cell)) * 32 * 2 * words_of(precision) * 4;
}
// How many warps' parts of a CTA's sums are read together, of so many sums: up to eight float4 of a lane are in
// flight, of one sum four, as backward has no registers for more (TF32 in the grid spills).
FASTRNN_HD constexpr int parts_together(int sums) { return sums > 1 ? 2 : 4; }
// Grid: pieces of the operand that a warp has on their way into shared memory at once (cuda/persistent/
// operand_copies.cuh), at most.
constexpr int kMostCopiesAhead = 4;
// Every warp's part of a sum of one tile of rows.
constexpr int64_t parts_bytes(int warps, int sums) { return static_cast<int64_t>(warps) * sums * 32 * 16; }

// The grid tier's workspace: the error word, a flag a replica, then each replica's two operand buffers.
constexpr int64_t operand_words(int unit_tiles, int n_tiles, int operand_gates, Precision precision) {
  return static_cast<int64_t>(n_tiles) * operand_gates * unit_tiles * 32 * words_of(precision);
}
constexpr int64_t flags_bytes(int replicas_of_all) { return static_cast<int64_t>(1 + replicas_of_all) * kLineBytes; }

// Grid, bytes of shared memory behind the biases: the parts of the sums of all tiles of rows, then the copies of the
// operand, so many pieces of each warp's tiles of K, then the weights that have no registers.
inline int64_t grid_parts_bytes(const PersistentGeometry& g) {
  return g.n_tiles * parts_bytes(kGridWarps, g.pass == Pass::kForward ? gates_of(g.cell) : 1);
}
inline int64_t grid_piece_bytes(const PersistentGeometry& g) {
  return static_cast<int64_t>(kGridWarps) * part_tiles(g.unit_tiles, kGridWarps) * 32 * words_of(g.precision) * 4;
}
inline int64_t grid_kept_bytes(const PersistentGeometry& g) {
  const int tiles = kept_tiles(g.unit_tiles, kGridWarps, max_tiles(g.cell, g.precision, g.tier));
  return kGridWarps * tiles * kept_bytes(g.cell, g.precision);
}

// Cluster: the operand of a step in a CTA's shared memory, and what the CTA receives of its peers in a step. Forward
// that is the same. Backward the operand is the CTA's own, and what it receives are parts of its sums, of every peer.
inline int64_t cluster_operand_bytes(const PersistentGeometry& g) {
  const int tiles = g.units_per_cta / kTileUnits;
  return g.pass == Pass::kForward ? operand_words(g.peers * tiles, g.n_tiles, 1, g.precision) * 4
                                  : operand_words(tiles, g.n_tiles, gates_of(g.cell), g.precision) * 4;
}
inline int64_t cluster_received_bytes(const PersistentGeometry& g) {
  return g.pass == Pass::kForward ? cluster_operand_bytes(g)
                                  : g.n_tiles * parts_bytes(g.peers, g.units_per_cta / kTileUnits);
}

// Cluster: shared memory from the biases' end to where the kept weights begin.
inline int64_t cluster_exchange_bytes(const PersistentGeometry& g) {
  const int warps = g.threads / 32;
  const int64_t sums = g.pass == Pass::kBackward ? 2 * cluster_received_bytes(g)
                       : g.k_split == 1          ? 0
                                                 : g.n_tiles * parts_bytes(warps, gates_of(g.cell));
  return 2 * cluster_operand_bytes(g) + sums;
}
// Cluster: bytes of the weights that have no registers.
inline int64_t cluster_kept_bytes(const PersistentGeometry& g) {
  const int warps = g.threads / 32;
  if (g.pass == Pass::kForward) {
    const int tiles = g.units_per_cta / kTileUnits, in_registers = max_tiles(g.cell, g.precision, g.tier);
    int64_t kept = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      const int split = g.k_split + (tile < g.k_more);
      kept += split * kept_tiles(g.unit_tiles, split, in_registers);
    }
    return kept * kept_bytes(g.cell, g.precision);
  }
  return kOutputsTogether * kept_bytes(g.cell, g.precision) *
         kept_groups(g.unit_tiles, g.units_per_cta / kTileUnits, warps, max_groups(g.cell, g.precision), warps);
}

}  // namespace fastrnn::cuda
