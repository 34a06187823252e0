// Which tier of the CUDA kernels runs a pass of a layer. Compiled into the CUDA library and, for plans on
// paper, into the Python module: no CUDA header, no CUDA call.
#include "plan/cuda.h"

#include <algorithm>
#include <initializer_list>

#include "plan/table.h"
#include "plan/tiles.h"

namespace fastrnn {
namespace {

using cuda::CudaDevice;
using cuda::Pass;
using cuda::PersistentGeometry;
using cuda::Precision;

// The model: microseconds a time step, by tier. Estimates for an H100 from published latencies (a flag exchange
// through the L2 of 1.04 to 1.31 us on an H200, a kernel launch of 2.4) and the kernels' instruction counts; nothing
// here is measured. It carries the timings of table.inl to other GPUs and shapes, and serves where there are none.
struct StepCosts {
  // A CTA: fixed part, and a part for each unit whose products a warp issues; the second grows with the
  // matrix instructions a product takes.
  double cta_fixed, cta_unit;
  // The grid: the exchange, and the products of a tile of 8 rows over 1024 units.
  double grid_exchange, grid_tile;
  // A cluster: a product of 16 units, 16 of K and 8 rows on one of an SM's four schedulers.
  double cluster_product;
};
constexpr StepCosts kHalfTypes = {0.06, 0.0027, 1.04, 0.20, 0.0045};
constexpr StepCosts kTf32 = {0.06, 0.0054, 1.04, 0.40, 0.0090};
constexpr StepCosts kFloat32 = {0.06, 0.0150, 1.04, 1.10, 0};  // three TF32 products each, and their splits
// Warps' parts of a sum, read from shared memory and added, as many together as parts_together says: 80 cycles, of
// which a read takes 33, the lines of eight float4 of 32 lanes as many again.
constexpr double kPartsRead = 0.045;
// Clusters of 16 are no portable size: fewer fit on a GPU than its SMs say, and a smaller one that is nearly as fast
// is the better choice.
constexpr double kSixteenWorth = 0.9;
constexpr double kBackward = 1.4;  // a backward step's share of a forward one's
// A cluster: the cell and a push that arrives; the push of a tile to one peer; a peer's part of a sum, read and added
// (backward); what an SM receives from its peers, and what it reads of its own shared memory (128 bytes a clock), in
// bytes a microsecond.
constexpr double kClusterFixed = 0.17, kPush = 0.004, kPart = 0.005, kReceived = 50e3, kSharedRead = 217e3;
// A product and a kernel a step, each launched by the host; with a projection, or the reset gate before the product,
// two of each.
constexpr double kStepwiseLaunches = 9.0;
// The same two from a CUDA graph: the GPU's own time between kernels that wait for each other (1.3 published for a
// launch in a graph), and theirs. Once a pass: about ten copies that the host launches, and the graph; the copies go
// through memory twice, at so many bytes a microsecond.
constexpr double kGraphStep = 5.5, kGraphStart = 30.0, kCopied = 1.5e6;
// What one graph may keep in copies, and the steps that one may have: twice as many kernels, or with a projection
// four times.
constexpr int64_t kMostGraphBytes = 256 << 20, kMostGraphSteps = 8192;
// Before the first step of a persistent tier: a launch (2.4), code that no cache has yet, and one answer of memory
// (0.8) for weights, state, inputs and biases, which are asked for together; the weights' bytes come as kReceived.
// The grid's flags are cleared by a launch of their own before it.
constexpr double kPersistentStart = 4.5, kGridFlags = 2.5;
// The product with W_ih as a launch of its own, a direction; and inside the kernel: fixed part of the products of
// 8 rows, and a part for each 16 of I and gate.
constexpr double kProductLaunch = 6.0, kProjectFixed = 0.06, kProjectTile = 0.008;
// x's product beside the loop: SMs that the loop leaves idle, of all, for that to be worth a thought; what a chunk
// adds beside the kernel's start, an event each way; and steps of one, below which its start is most of it.
constexpr double kIdleSms = 0.25, kChunkEvents = 1.5;
constexpr int64_t kChunkSteps = 16;
constexpr int kMostChunks = 8;
// What a GPU with so many SMs multiplies a microsecond, for the stepwise tier's large products.
constexpr int kReferenceSms = 132;
double stepwise_flops(Dtype dtype, Precision precision) {
  if (dtype == Dtype::kDouble) return 30e6;
  return precision == Precision::kFloat32 ? 35e6 : precision == Precision::kTf32 ? 200e6 : 400e6;
}

const StepCosts& costs_of(Precision precision) {
  return precision == Precision::kFloat32 ? kFloat32 : precision == Precision::kTf32 ? kTf32 : kHalfTypes;
}

// Copies of what a pass reads and writes in every step, all rows of equal length.
int64_t graph_bytes(const LayerShape& s, Pass pass) {
  const int64_t element = static_cast<int64_t>(size_of(s.dtype)), compute = s.dtype == Dtype::kDouble ? 8 : 4;
  const int64_t gates = (saved_of(s.cell) ? saved_of(s.cell) : gates_of(s.cell)) * s.H;
  const int64_t cells = facts_of(s.cell).has_cell ? s.H : 0;
  // y, forward; y, its gradient, with a projection that of every step's h and h, backward.
  const int64_t outputs = pass == Pass::kForward ? s.out_size() : 2 * s.out_size() + (s.P ? s.P + s.H : 0);
  return s.T * s.B * s.D * (element * (gates + outputs) + compute * cells);
}

// forward's or backward's a step, without what it multiplies.
double stepwise_launches_us(const LayerShape& s, Pass pass, bool graph) {
  const int twice = s.P || s.variant.reset_before ? 2 : 1;
  if (!graph) return kStepwiseLaunches * twice;
  const double once = kGraphStart + static_cast<double>(graph_bytes(s, pass)) / kCopied;
  return kGraphStep * twice + once / static_cast<double>(std::max<int64_t>(1, s.T));
}

double stepwise_us(const LayerShape& s, Precision precision, Pass pass, const CudaDevice& device, bool graph) {
  const int64_t recurrent = s.out_size() / s.variant.heads;  // columns of W_hh
  const double flops = 2.0 * s.D * s.B * (gates_of(s.cell) * s.H * recurrent + s.H * s.P);
  const double rate = stepwise_flops(s.dtype, precision) * std::max(1, device.sms) / kReferenceSms;
  return stepwise_launches_us(s, pass, graph) + flops / rate;
}

// Of the parts that the warps of a CTA leave for each other, where they share K.
double parts_us(const PersistentGeometry& g) {
  const int split = g.tier == Tier::kGrid ? cuda::kGridWarps : g.pass == Pass::kForward ? g.k_split : 1;
  const int together = cuda::parts_together(g.pass == Pass::kForward ? gates_of(g.cell) : 1);
  return g.tier == Tier::kOneCta || split == 1 ? 0 : kPartsRead * ((split + together - 1) / together);
}

double cluster_us(const LayerShape& s, const PersistentGeometry& g, const CudaDevice& device) {
  const int gates = gates_of(s.cell), cta_tiles = g.units_per_cta / cuda::kTileUnits;
  const double products = double(cta_tiles) * g.unit_tiles * gates * g.n_tiles / 4;
  const double kept = static_cast<double>(cuda::cluster_kept_bytes(g)) * g.n_tiles;
  double us = costs_of(g.precision).cluster_product * products + kept / kSharedRead +
              cuda::cluster_received_bytes(g) / kReceived;
  if (g.pass == Pass::kForward) {
    us += kClusterFixed + parts_us(g) + kPush * g.peers;  // a finishing warp's, in a row
  } else {
    // The products are as many as forward's. Every warp pushes its own outputs, behind their products.
    const int outputs = cuda::groups_of(g.unit_tiles, 1, g.threads / 32, 0) * cuda::kOutputsTogether;
    us += kBackward * kClusterFixed + kPart * g.peers + kPush * outputs * g.n_tiles;
  }
  const int at_once = cuda::clusters_at_once(device, g.ctas_per_replica), clusters = g.replicas * g.D;
  return us * ((clusters + at_once - 1) / at_once);
}

double start_us(const LayerShape& s, const PersistentGeometry& g) {
  const double weights = static_cast<double>(gates_of(s.cell) * s.H * g.units_per_cta) * size_of(s.dtype);
  return kPersistentStart + weights / kReceived + (g.tier == Tier::kGrid ? kGridFlags : 0);
}

double persistent_us(const LayerShape& s, const PersistentGeometry& g, const CudaDevice& device) {
  const StepCosts& cost = costs_of(g.precision);
  double us = 0;
  if (g.tier == Tier::kCluster) {
    us = cluster_us(s, g, device);
  } else if (g.tier == Tier::kOneCta) {
    const int waves = (g.ctas + device.sms - 1) / std::max(1, device.sms);
    us = waves * (cost.cta_fixed + cost.cta_unit * s.H);
  } else {
    const double kept = static_cast<double>(cuda::grid_kept_bytes(g)) * g.n_tiles;
    us = cost.grid_exchange + parts_us(g) + cost.grid_tile * g.n_tiles * s.H / 1024 + kept / kSharedRead;
  }
  if (g.pass == Pass::kBackward && g.tier != Tier::kCluster) us *= kBackward;
  return us + start_us(s, g) / std::max<int64_t>(1, s.T);
}

// How a tier cuts a layer. Of clusters, unless one size is asked for, the smallest that is the fastest by the model,
// 16 only by a tenth; where none takes the layer, the largest one's reason.
PersistentGeometry geometry_of(const LayerShape& s, Precision precision, Pass pass, const CudaDevice& device,
                               Tier tier, int size = 0) {
  const auto of = [&](Tier kind, int cluster) {
    return cuda::geometry(s.cell, precision, kind, s.H, s.B, s.D, pass, device, cluster);
  };
  if (tier != Tier::kCluster) return of(tier == Tier::kOneCta ? Tier::kOneCta : Tier::kGrid, 0);
  if (size) return of(Tier::kCluster, size);
  PersistentGeometry best = of(Tier::kCluster, 4);
  for (int ctas : {8, 16}) {
    const PersistentGeometry larger = of(Tier::kCluster, ctas);
    const double worth = ctas == 16 ? kSixteenWorth : 1;
    const auto faster = [&] { return persistent_us(s, larger, device) < worth * persistent_us(s, best, device); };
    const bool better = best.fits ? larger.fits && faster() : larger.fits || ctas <= device.max_cluster;
    if (better) best = larger;
  }
  return best;
}

// A plan's time: the table's at the point next to the layer, times what the model makes of the difference. At a
// point of the table, on its GPU, that is the timing itself.
void set_step_us(CudaPlan& plan, const LayerShape& s, Pass pass, const CudaDevice& device, const PlanTable& table) {
  const auto model = [&](const LayerShape& shape, const PersistentGeometry& g, const CudaDevice& on) {
    return is_persistent(plan.tier) ? persistent_us(shape, g, on)
                                    : stepwise_us(shape, plan.precision, pass, on, plan.tier == Tier::kStepwiseGraph);
  };
  plan.step_us = plan.model_us = model(s, plan.geometry, device);
  if (table.batches.empty() || s.dtype == Dtype::kDouble) return;
  bool point = false;
  LayerShape there = s;
  const double timed = table_us(table, plan.tier, s.cell, plan.precision, pass, there.H, there.B, point);
  if (!(timed > 0)) return;
  there.T = table.steps;
  there.D = 1;
  there.P = 0;
  there.variant = {};  // the table's layers are plain
  const bool persistent = is_persistent(plan.tier);
  const PersistentGeometry g =
      persistent ? geometry_of(there, plan.precision, pass, table.device, plan.tier) : PersistentGeometry{};
  if (persistent && !g.fits) return;
  plan.step_us = timed * plan.model_us / model(there, g, table.device);
  if (!table.measured) return;
  const bool same_gpu =
      device.compute_capability == table.device.compute_capability && device.sms == table.device.sms;
  const bool within = there.B == s.B && there.H == s.H && s.D == 1 && s.P == 0 && !s.variant.any();
  plan.source = !same_gpu || !within          ? StepSource::kScaled
                : point && s.T == table.steps ? StepSource::kMeasured
                                              : StepSource::kInterpolated;
}

CudaPlan stepwise(const LayerShape& s, Precision precision, Pass pass, const CudaDevice& device,
                  const PlanTable& table, const char* reason) {
  CudaPlan plan;
  plan.tier = Tier::kStepwise;
  plan.precision = precision;
  set_step_us(plan, s, pass, device, table);
  plan.reason = reason;
  return plan;
}

// The stepwise tier's loop as a CUDA graph.
CudaPlan stepwise_graph(const LayerShape& s, Precision precision, Pass pass, const CudaDevice& device,
                        const PlanTable& table) {
  CudaPlan plan;
  plan.tier = Tier::kStepwiseGraph;
  plan.precision = precision;
  plan.graph_bytes = graph_bytes(s, pass);
  plan.possible = s.B == 0;  // nothing to launch
  if (s.variant.any()) {
    plan.reason = "a variant: its steps are not captured";
  } else if (s.B == 0) {
    plan.reason = "no rows: nothing to compute";
  } else if (s.T > kMostGraphSteps) {
    plan.reason = "more than 8192 steps: a graph of them all is too large";
  } else if (plan.graph_bytes > kMostGraphBytes) {
    plan.reason = "a graph keeps copies of the sequence, which would be more than 256 MB: the host does not bound it";
  } else {
    plan.possible = true;
    set_step_us(plan, s, pass, device, table);
    plan.reason = "a product and a kernel a step, launched as one CUDA graph: the host does not bound them";
  }
  return plan;
}

// Whether a forward kernel should make x's part of the gates itself. It takes the rows of each CTA one after another,
// so that costs less than a launch where x is narrow and there are few steps; 8 rows are one product, 1 row's steps
// an eighth.
bool projects(const LayerShape& s, const PersistentGeometry& g, const CudaDevice& device) {
  if (g.pass == Pass::kBackward || s.I < 1 || s.I > cuda::kMaxProjected || g.ctas > device.sms) return false;
  const double slower = g.precision == Precision::kFloat32 ? 6 : g.precision == Precision::kTf32 ? 2 : 1;
  const int64_t steps_a_product = std::max<int64_t>(1, cuda::kTileRows / s.B);
  const double products = static_cast<double>(s.T) / static_cast<double>(steps_a_product);
  const double tiles = static_cast<double>((s.I + cuda::kTileUnits - 1) / cuda::kTileUnits) * gates_of(s.cell);
  return products * (kProjectFixed + kProjectTile * slower * tiles) < kProductLaunch * s.D;
}

// A whole forward pass in so many chunks, microseconds: the product of the first one takes the whole GPU, those of
// the others the SMs that the loop leaves, and a loop waits for its product. 1: as it is without.
double chunked_us(const LayerShape& s, const CudaPlan& plan, const CudaDevice& device, int chunks) {
  const PersistentGeometry& g = plan.geometry;
  const double rate = stepwise_flops(s.dtype, plan.precision) * std::max(1, device.sms) / kReferenceSms;
  const double product = 2.0 * s.D * s.T * s.B * gates_of(s.cell) * s.H * s.I / rate / chunks;
  const double start = start_us(s, g);
  const double loop = (persistent_us(s, g, device) * static_cast<double>(s.T) - start) / chunks;
  if (chunks == 1) return product + start + loop;
  const double beside = product * device.sms / std::max(1, device.sms - g.ctas);
  double made = product, free = 0;  // when the next chunk's product is there, and the loops before it are done
  for (int chunk = 0; chunk < chunks; ++chunk) {
    free = std::max(made, free) + start + kChunkEvents + loop;
    made += beside;
  }
  return free;
}

// Why x's product cannot run beside the loop of a plan, null where it can.
const char* never_beside(const LayerShape& s, const CudaPlan& plan, Pass pass, const CudaDevice& device) {
  if (pass == Pass::kBackward) return "backward: no product comes before its loop";
  if (s.D > 1) return "two directions: the second one begins at the sequence's end";
  if (s.batch_sizes || s.order) return "rows of unequal length: chunks of the sequence would cut them";
  if (s.T < 2 * kChunkSteps) return "few steps: a chunk has 16 of them or more";
  if (plan.projects) return "few inputs: the kernel makes their product itself, in less time";
  if (device.sms - plan.geometry.ctas < kIdleSms * device.sms) {
    return "the loop leaves less than a quarter of the GPU idle: nothing runs beside it";
  }
  return nullptr;
}

CudaPlan persistent(const LayerShape& s, Precision precision, Pass pass, const CudaDevice& device,
                    const PlanTable& table, Tier asked) {
  const Tier tier = family_of(asked);
  CudaPlan plan;
  plan.tier = tier;
  plan.precision = precision;
  plan.geometry = geometry_of(s, precision, pass, device, tier, cluster_of(asked));
  plan.possible = plan.geometry.fits;
  if (!plan.possible) {
    plan.reason = plan.geometry.reason;
    return plan;
  }
  plan.projects = projects(s, plan.geometry, device);
  set_step_us(plan, s, pass, device, table);
  if (overlaps(asked)) {
    if (const char* never = never_beside(s, plan, pass, device)) {
      plan.possible = false;
      plan.reason = never;
      return plan;
    }
    double best = 0;
    for (int chunks = 2; chunks <= kMostChunks && s.T / chunks >= kChunkSteps; chunks *= 2) {
      const double us = chunked_us(s, plan, device, chunks);
      if (plan.chunks > 1 && us >= best) continue;
      best = us;
      plan.chunks = chunks;
    }
    const double gain = (best - chunked_us(s, plan, device, 1)) / static_cast<double>(s.T);
    plan.step_us += gain;
    plan.model_us += gain;
    plan.source = StepSource::kModel;
    plan.reason = "x's product is made in chunks on the SMs that the loop leaves idle, beside the loops before";
    return plan;
  }
  plan.reason = tier == Tier::kOneCta ? "the recurrent weights stay in one SM's registers: nothing leaves it"
                : tier == Tier::kCluster
                    ? "the recurrent weights stay in a cluster of SMs: they push h to each other, past the L2 cache"
                    : "the recurrent weights stay in the GPU's SMs: one flag exchange a step";
  return plan;
}

// Fewer steps do not repay reading the weights into registers.
constexpr int64_t kFewSteps = 4;

// Why a persistent tier cannot take the layer, whatever the device; null where one may.
const char* never_persistent(const LayerShape& s) {
  if (s.variant.any()) return "a variant: stepwise only";
  if (s.dtype == Dtype::kDouble) return "float64: the persistent kernels know float32 and half types";
  if (s.P) return "a projection: the persistent kernels have none";
  if (s.B == 0) return "no rows: nothing to compute";
  return nullptr;
}

}  // namespace

const char* only_stepwise(const LayerShape& s) {
  if (const char* never = never_persistent(s)) return never;
  return s.T < kFewSteps ? "few steps: they do not repay loading the weights" : nullptr;
}

Precision cuda_precision(Dtype dtype, bool tf32) {
  return dtype == Dtype::kBFloat16        ? Precision::kBFloat16
         : dtype == Dtype::kHalf          ? Precision::kHalf
         : tf32 && dtype == Dtype::kFloat ? Precision::kTf32
                                          : Precision::kFloat32;
}

CudaPlan plan_cuda(const LayerShape& s, bool tf32, Pass pass, const CudaDevice& device, Tier wanted,
                   const PlanTable& table) {
  const Precision precision = cuda_precision(s.dtype, tf32);
  const char* never = never_persistent(s);
  const auto a_step_at_a_time = [&](const char* reason) {
    return stepwise(s, precision, pass, device, table, reason);
  };
  if (wanted == Tier::kStepwise) return a_step_at_a_time("asked for by name");
  if (wanted != Tier::kAuto) {
    CudaPlan plan;
    if (wanted == Tier::kStepwiseGraph) {
      plan = stepwise_graph(s, precision, pass, device, table);
      plan.asked = wanted;
      return plan;
    }
    if (never) {
      plan.tier = family_of(wanted);
      plan.precision = precision;
      plan.possible = s.B == 0;  // nothing to launch
      plan.reason = never;
    } else {
      plan = persistent(s, precision, pass, device, table, wanted);
    }
    plan.asked = wanted;
    return plan;
  }
  if (const char* steps = only_stepwise(s)) return a_step_at_a_time(steps);

  const CudaPlan one = persistent(s, precision, pass, device, table, Tier::kOneCta);
  const CudaPlan grid = persistent(s, precision, pass, device, table, Tier::kGrid);
  // A cluster has nothing to offer where one SM holds the weights: its SMs take further rows instead.
  CudaPlan cluster;
  cluster.possible = false;
  if (!one.possible) cluster = persistent(s, precision, pass, device, table, Tier::kCluster);
  CudaPlan best = a_step_at_a_time("");
  best.reason =
      one.possible || cluster.possible || grid.possible ? "a step at a time is faster here" : grid.geometry.reason;
  for (const CudaPlan* plan : std::initializer_list<const CudaPlan*>{&grid, &cluster, &one}) {
    if (plan->possible && plan->step_us < best.step_us) best = *plan;
  }
  return best;
}

}  // namespace fastrnn
