// Compiled into the CUDA library, and into the Python module for plans of machines that are elsewhere.
#include <algorithm>

#include "plan/tiles.h"

namespace fastrnn::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

PersistentGeometry refused(PersistentGeometry g, const char* reason) {
  g.reason = reason;
  return g;
}

constexpr int64_t kMaxCtas = 1 << 30;

// The grid's largest layer of float32 without TF32. Tensor cores cut the last bit of every sum off, so a sum's error
// grows with the products that a warp adds to it: at H = 1024 it is as exact as float32's should be, at 1536 not.
constexpr int kMostExactTiles = 1024 / kTileUnits;

int64_t front_bytes(const PersistentGeometry& g) {
  const int bias_gates = g.pass == Pass::kForward ? recurrent_gates_of(g.cell) : 0;
  return front_words(bias_gates, g.units_per_cta) * 4;
}

int operand_gates_of(const PersistentGeometry& g) { return g.pass == Pass::kForward ? 1 : gates_of(g.cell); }

PersistentGeometry one_cta(PersistentGeometry g, const CudaDevice& device) {
  if (g.unit_tiles > max_tiles(g.cell, g.precision, g.tier)) {
    return refused(g, "the recurrent weights do not fit one CTA's registers");
  }
  g.ctas_per_replica = 1;
  g.units_per_cta = g.unit_tiles * kTileUnits;
  g.k_split = 1;
  g.n_tiles = 1;
  g.threads = g.unit_tiles * 32;
  const int64_t buffers = 2 * operand_words(g.unit_tiles, 1, operand_gates_of(g), g.precision) * 4;
  g.shared_bytes = front_bytes(g) + buffers;
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

// Grid: each replica needs an SM a tile of units. As many replicas as the device holds share the rows, so that each
// has as few tiles of rows as possible: a step's time grows with them.
PersistentGeometry grid(PersistentGeometry g, const CudaDevice& device) {
  if (!device.cooperative_launch) return refused(g, "the device has no cooperative launch");
  if (g.precision == Precision::kFloat32 && g.unit_tiles > kMostExactTiles) {
    return refused(g, "float32 without TensorFloat-32: sums over more than 1024 units lose its last digits");
  }
  g.ctas_per_replica = g.unit_tiles;
  g.units_per_cta = kTileUnits;
  g.k_split = kGridWarps;
  g.threads = kGridWarps * 32;
  g.n_tiles = 1;
  if (front_bytes(g) + grid_parts_bytes(g) + grid_piece_bytes(g) + grid_kept_bytes(g) >
      device.shared_bytes_per_block_optin) {
    return refused(g, "the recurrent weights do not fit the registers and shared memory of an SM for every 16 units");
  }
  const char* const few_sms_for_batch = "the device has too few SMs for the batch";
  const int64_t room = device.sms / g.ctas_per_replica / g.D;
  if (room == 0) return refused(g, "the device has too few SMs for the recurrent weights");
  const int64_t n_tiles = ceil_div(g.B, room * kTileRows);
  if (n_tiles > kGridWarps) return refused(g, few_sms_for_batch);
  g.n_tiles = static_cast<int>(n_tiles);
  const int64_t piece = grid_piece_bytes(g), pieces = n_tiles * operand_gates_of(g);
  const auto shared = [&](int64_t copies) {
    return front_bytes(g) + grid_parts_bytes(g) + copies * piece + grid_kept_bytes(g);
  };
  if (shared(1) > device.shared_bytes_per_block_optin) return refused(g, few_sms_for_batch);
  g.copies_ahead = kMostCopiesAhead;
  while (g.copies_ahead > 1 &&
         (g.copies_ahead >= 2 * pieces || shared(g.copies_ahead) > device.shared_bytes_per_block_optin))
    g.copies_ahead /= 2;
  g.replicas = static_cast<int>(ceil_div(g.B, n_tiles * kTileRows));
  g.ctas = g.ctas_per_replica * g.replicas * g.D;
  g.shared_bytes = shared(g.copies_ahead);
  const int all = g.replicas * g.D;
  g.workspace_bytes =
      flags_bytes(all) + all * 2 * operand_words(g.unit_tiles, g.n_tiles, operand_gates_of(g), g.precision) * 4;
  g.fits = true;
  return g;
}

// Warps that share a tile's products: one each of an SM's four schedulers at least, enough registers for the weights,
// and a finishing warp a tile of rows; as far as there are warps and tiles of K. Returns the most tiles of rows.
int64_t cluster_forward(PersistentGeometry& g, int64_t cta_tiles, int64_t wanted) {
  const int in_registers = max_tiles(g.cell, g.precision, g.tier);
  const int64_t most = std::min<int64_t>(kMaxWarps / cta_tiles, g.unit_tiles);
  int64_t split = std::max({ceil_div(4, cta_tiles), ceil_div(g.unit_tiles, in_registers), std::min(wanted, most)});
  split = std::min(split, most);
  g.k_split = static_cast<int>(split);
  // Three tiles of units: two have three warps then, one has two.
  if (split == most && split > 1 && split < g.unit_tiles) g.k_more = static_cast<int>(kMaxWarps - cta_tiles * split);
  g.threads = static_cast<int>(cta_tiles * split + g.k_more) * 32;
  return std::min(wanted, split);
}

// A finishing warp for each of the CTA's own tiles of units and rows; and as many warps as there are pairs of
// outputs.
void cluster_backward(PersistentGeometry& g, int64_t cta_tiles) {
  g.k_split = g.n_tiles;
  const int64_t pairs = ceil_div(g.unit_tiles, kOutputsTogether);
  g.threads = static_cast<int>(std::max(cta_tiles * g.n_tiles, std::min<int64_t>(pairs, kMaxWarps))) * 32;
}

// Clusters do not wait for each other, so any number may be launched, and runs as SMs become free. As many as the
// device holds at once share the rows first; then each takes more tiles of rows; then there are more clusters.
PersistentGeometry cluster(PersistentGeometry g, const CudaDevice& device, int ctas) {
  if (ctas < 1 || ctas > device.max_cluster || ctas > device.sms)
    return refused(g, "the device has no thread block cluster of this size");
  if (g.precision == Precision::kFloat32) return refused(g, "float32 without TensorFloat-32: no kernel for clusters");
  const int64_t cta_tiles = ceil_div(g.unit_tiles, ctas);
  if (cta_tiles > kMaxWarps) return refused(g, "the cluster has too few CTAs for the units");
  g.ctas_per_replica = ctas;
  g.units_per_cta = static_cast<int>(cta_tiles * kTileUnits);
  g.peers = static_cast<int>(ceil_div(g.unit_tiles, cta_tiles));
  const int64_t room = std::max(1, clusters_at_once(device, ctas) / g.D);
  const int64_t wanted = ceil_div(g.B, room * kTileRows);
  const int64_t most =
      g.pass == Pass::kForward ? cluster_forward(g, cta_tiles, wanted) : std::min(wanted, kMaxWarps / cta_tiles);

  for (g.n_tiles = static_cast<int>(most); g.n_tiles > 0; --g.n_tiles) {
    if (g.pass == Pass::kBackward) cluster_backward(g, cta_tiles);
    g.shared_bytes = front_bytes(g) + cluster_exchange_bytes(g) + cluster_kept_bytes(g);
    if (g.shared_bytes <= device.shared_bytes_per_block_optin) break;
  }
  if (g.n_tiles == 0)
    return refused(g, "the recurrent weights do not fit the registers and shared memory of a cluster");
  const int64_t replicas = ceil_div(g.B, g.n_tiles * kTileRows);
  if (replicas * ctas * g.D > kMaxCtas) return refused(g, "the batch is too large for a grid");
  g.replicas = static_cast<int>(replicas);
  g.ctas = ctas * g.replicas * g.D;
  g.fits = true;
  return g;
}

}  // namespace

PersistentGeometry geometry(CellKind cell, Precision precision, Tier tier, int64_t H, int64_t B, int D, Pass pass,
                            const CudaDevice& device, int cluster_size) {
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
  if (tier == Tier::kCluster) return cluster(g, device, cluster_size);
  return tier == Tier::kOneCta ? one_cta(g, device) : grid(g, device);
}

}  // namespace fastrnn::cuda
