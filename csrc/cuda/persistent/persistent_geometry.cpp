// Compiled into the CUDA library, and into the Python module for plans of machines that are elsewhere.
#include <algorithm>

#include "tiles.h"

namespace fastrnn::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

PersistentGeometry refused(PersistentGeometry g, const char* reason) {
  g.reason = reason;
  return g;
}

constexpr int64_t kMaxCtas = 1 << 30;

int64_t front_bytes(const PersistentGeometry& g) {
  const int bias_gates = g.pass == Pass::kForward ? gates_of(g.cell) + (g.cell == CellKind::kGru) : 0;
  return front_words(bias_gates, g.units_per_cta) * 4;
}

// Shared memory of a CTA in the grid tier for one tile of rows: every warp's part of every sum. Backward adds up the
// gates in registers before that.
int64_t grid_shared_bytes_per_tile(const PersistentGeometry& g) {
  const int sums = g.pass == Pass::kForward ? gates_of(g.cell) : 1;
  return static_cast<int64_t>(kGridWarps) * sums * 32 * 16;
}

PersistentGeometry one_cta(PersistentGeometry g, const CudaDevice& device) {
  if (g.unit_tiles > max_tiles(g.cell, g.precision, g.tier)) {
    return refused(g, "the recurrent weights do not fit one CTA's registers");
  }
  const int operand_gates = g.pass == Pass::kForward ? 1 : gates_of(g.cell);
  g.ctas_per_replica = 1;
  g.units_per_cta = g.unit_tiles * kTileUnits;
  g.k_split = 1;
  g.n_tiles = 1;
  g.threads = g.unit_tiles * 32;
  const int64_t buffers = 2 * operand_words(g.unit_tiles, 1, operand_gates, g.precision) * 4;
  g.shared_bytes = front_bytes(g) + std::max(buffers, g.unit_tiles * kStageBytes);
  const int64_t replicas = ceil_div(g.B, kTileRows);
  if (replicas * g.D > kMaxCtas) return refused(g, "the batch is too large for a grid");
  if (g.shared_bytes > device.shared_bytes_per_block_optin) {
    return refused(g, "the exchange does not fit the device's shared memory");
  }
  g.replicas = static_cast<int>(replicas);
  g.ctas = g.replicas * g.D;
  g.fits = true;
  return g;
}

// Each replica needs an SM a tile of units. As many replicas as the device holds share the rows, so that each
// has as few tiles of rows as possible: a step's time grows with them.
PersistentGeometry grid(PersistentGeometry g, const CudaDevice& device) {
  if (!device.cooperative_launch) return refused(g, "the device has no cooperative launch");
  if (ceil_div(g.unit_tiles, kGridWarps) > max_tiles(g.cell, g.precision, g.tier)) {
    return refused(g, "the recurrent weights do not fit the registers of an SM for every 16 units");
  }
  g.ctas_per_replica = g.unit_tiles;
  g.units_per_cta = kTileUnits;
  g.k_split = kGridWarps;
  g.threads = kGridWarps * 32;
  const int64_t room = device.sms / g.ctas_per_replica / g.D;
  if (room == 0) return refused(g, "the device has too few SMs for the recurrent weights");
  const int64_t n_tiles = ceil_div(g.B, room * kTileRows);
  const int64_t per_tile = grid_shared_bytes_per_tile(g);
  const int64_t most =
      std::min<int64_t>(kGridWarps, (device.shared_bytes_per_block_optin - front_bytes(g)) / per_tile);
  if (n_tiles > most) return refused(g, "the device has too few SMs for the batch");
  g.n_tiles = static_cast<int>(n_tiles);
  g.replicas = static_cast<int>(ceil_div(g.B, n_tiles * kTileRows));
  g.ctas = g.ctas_per_replica * g.replicas * g.D;
  g.shared_bytes = front_bytes(g) + std::max(n_tiles * per_tile, kGridWarps * kStageBytes);
  const int operand_gates = g.pass == Pass::kForward ? 1 : gates_of(g.cell);
  const int all = g.replicas * g.D;
  g.workspace_bytes =
      flags_bytes(all) + all * 2 * operand_words(g.unit_tiles, g.n_tiles, operand_gates, g.precision) * 4;
  g.fits = true;
  return g;
}

}  // namespace

PersistentGeometry geometry(CellKind cell, Precision precision, Tier tier, int64_t H, int64_t B, int D, Pass pass,
                            const CudaDevice& device) {
  PersistentGeometry g;
  g.cell = cell;
  g.precision = precision;
  g.tier = tier;
  g.pass = pass;
  g.H = H;
  g.B = B;
  g.D = D;
  if (H < 1 || B < 1 || D < 1 || D > 2) return refused(g, "there is nothing to compute");
  if (device.compute_capability < 80) return refused(g, "the device is older than compute capability 8.0");
  const int64_t unit_tiles = ceil_div(H, kTileUnits);
  if (unit_tiles > 4096) return refused(g, "the recurrent weights do not fit any device's registers");
  g.unit_tiles = static_cast<int>(unit_tiles);
  return tier == Tier::kOneCta ? one_cta(g, device) : grid(g, device);
}

}  // namespace fastrnn::cuda
