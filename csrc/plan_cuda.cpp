// Which tier of the CUDA kernels runs a pass of a layer. Compiled into the CUDA library and, for plans on
// paper, into the Python module: no CUDA header, no CUDA call.
#include "plan_cuda.h"

#include <algorithm>
#include <initializer_list>

#include "cuda/persistent/tiles.h"

namespace fastrnn {
namespace {

using cuda::CudaDevice;
using cuda::Pass;
using cuda::PersistentGeometry;
using cuda::Precision;

// Microseconds a time step, by tier. Estimates for an H100 from published latencies (a flag exchange through
// the L2 of about 1 us, a kernel launch of 2.4) and the kernels' instruction counts; nothing here is measured.
// A measurement replaces a number in this table, and nothing else.
struct StepCosts {
  // A CTA: fixed part, and a part for each unit whose products a warp issues; the second grows with the
  // matrix instructions a product takes.
  double cta_fixed, cta_unit;
  // The grid: the exchange, and the products of a tile of 8 rows over 1024 units.
  double grid_exchange, grid_tile;
  // A cluster: a product of 16 units, 16 of K and 8 rows on one of an SM's four schedulers.
  double cluster_product;
};
constexpr StepCosts kHalfTypes = {0.06, 0.0027, 0.60, 0.20, 0.0045};
constexpr StepCosts kTf32 = {0.06, 0.0054, 0.60, 0.40, 0.0090};
constexpr StepCosts kFloat32 = {0.06, 0.0150, 0.60, 1.10, 0};  // three TF32 products each, and their splits
constexpr double kBackward = 1.4;                              // a backward step's share of a forward one's
// A cluster: the cell and a push that arrives; the push of a tile to one peer; what an SM receives from its peers,
// and what it reads of its own shared memory (128 bytes a clock), in bytes a microsecond.
constexpr double kClusterFixed = 0.17, kPush = 0.004, kReceived = 50e3, kSharedRead = 217e3;
// A product and a kernel a step, each launched by the host; with a projection two of each.
constexpr double kStepwiseLaunches = 9.0;
// The same before the first step of a persistent tier: weights into registers, the launch.
constexpr double kPersistentStart = 12.0;
// What a GPU with so many SMs multiplies a microsecond, for the stepwise tier's large products.
constexpr int kReferenceSms = 132;
double stepwise_flops(Dtype dtype, Precision precision) {
  if (dtype == Dtype::kDouble) return 30e6;
  return precision == Precision::kFloat32 ? 35e6 : precision == Precision::kTf32 ? 200e6 : 400e6;
}

const StepCosts& costs_of(Precision precision) {
  return precision == Precision::kFloat32 ? kFloat32 : precision == Precision::kTf32 ? kTf32 : kHalfTypes;
}

double stepwise_us(const LayerShape& s, Precision precision, const CudaDevice& device) {
  const double flops = 2.0 * s.D * s.B * (gates_of(s.cell) * s.H * s.out_size() + s.H * s.P);
  const double rate = stepwise_flops(s.dtype, precision) * std::max(1, device.sms) / kReferenceSms;
  return kStepwiseLaunches * (s.P ? 2 : 1) + flops / rate;
}

double cluster_us(const LayerShape& s, const PersistentGeometry& g, const CudaDevice& device) {
  const int gates = gates_of(s.cell), cta_tiles = g.units_per_cta / cuda::kTileUnits;
  const double products = double(cta_tiles) * g.unit_tiles * gates * g.n_tiles / 4;
  const double kept = std::max(0, g.k_tiles - cuda::max_tiles(s.cell, g.precision, g.tier)) * (g.threads / 32.0) *
                      cuda::kept_bytes(s.cell, g.precision) * g.n_tiles;
  double us = kClusterFixed + costs_of(g.precision).cluster_product * products + kept / kSharedRead;
  if (g.pass == Pass::kBackward) us *= kBackward;
  us += kPush * g.peers * (g.pass == Pass::kForward ? 1 : gates) + cuda::cluster_operand_bytes(g) / kReceived;
  const int at_once = cuda::clusters_at_once(device, g.ctas_per_replica), clusters = g.replicas * g.D;
  return us * ((clusters + at_once - 1) / at_once);
}

double persistent_us(const LayerShape& s, const PersistentGeometry& g, const CudaDevice& device) {
  const StepCosts& cost = costs_of(g.precision);
  double us = 0;
  if (g.tier == cuda::Tier::kCluster) return cluster_us(s, g, device) + kPersistentStart / s.T;
  if (g.tier == cuda::Tier::kOneCta) {
    const int waves = (g.ctas + device.sms - 1) / std::max(1, device.sms);
    us = waves * (cost.cta_fixed + cost.cta_unit * s.H);
  } else {
    us = cost.grid_exchange + cost.grid_tile * g.n_tiles * s.H / 1024;
  }
  if (g.pass == Pass::kBackward) us *= kBackward;
  return us + kPersistentStart / s.T;
}

CudaPlan stepwise(const LayerShape& s, Precision precision, const CudaDevice& device, const char* reason) {
  CudaPlan plan;
  plan.tier = CudaTier::kStepwise;
  plan.precision = precision;
  plan.step_us = stepwise_us(s, precision, device);
  plan.reason = reason;
  return plan;
}

CudaPlan persistent(const LayerShape& s, Precision precision, Pass pass, const CudaDevice& device, CudaTier tier,
                    int cluster = 0) {
  const auto kind = tier == CudaTier::kOneCta    ? cuda::Tier::kOneCta
                    : tier == CudaTier::kCluster ? cuda::Tier::kCluster
                                                 : cuda::Tier::kGrid;
  CudaPlan plan;
  plan.tier = tier;
  plan.precision = precision;
  plan.geometry = cuda::geometry(s.cell, precision, kind, s.H, s.B, s.D, pass, device, cluster);
  plan.possible = plan.geometry.fits;
  if (!plan.possible) {
    plan.reason = plan.geometry.reason;
    return plan;
  }
  plan.step_us = persistent_us(s, plan.geometry, device);
  plan.reason = tier == CudaTier::kOneCta ? "the recurrent weights stay in one SM's registers: nothing leaves it"
                : tier == CudaTier::kCluster
                    ? "the recurrent weights stay in a cluster of SMs: they push h to each other, past the L2 cache"
                    : "the recurrent weights stay in the GPU's registers: one flag exchange a step";
  return plan;
}

// The smallest cluster that is the fastest by estimate; where none takes the layer, the largest one's reason.
CudaPlan clustered(const LayerShape& s, Precision precision, Pass pass, const CudaDevice& device) {
  CudaPlan best = persistent(s, precision, pass, device, CudaTier::kCluster, 4);
  for (int ctas : {8, 16}) {
    const CudaPlan larger = persistent(s, precision, pass, device, CudaTier::kCluster, ctas);
    const bool better = larger.possible && larger.step_us < best.step_us;
    if (!best.possible ? larger.possible || ctas <= device.max_cluster : better) best = larger;
  }
  return best;
}

// Why no persistent tier is worth asking, null where one may be.
const char* only_stepwise(const LayerShape& s) {
  if (s.dtype == Dtype::kDouble) return "float64: the persistent kernels know float32 and half types";
  if (s.P) return "a projection: the persistent kernels have none";
  if (s.B == 0) return "no rows: nothing to compute";
  return nullptr;
}
// Fewer steps do not repay reading the weights into registers.
constexpr int64_t kFewSteps = 4;

}  // namespace

Precision cuda_precision(Dtype dtype, bool tf32) {
  return dtype == Dtype::kBFloat16        ? Precision::kBFloat16
         : dtype == Dtype::kHalf          ? Precision::kHalf
         : tf32 && dtype == Dtype::kFloat ? Precision::kTf32
                                          : Precision::kFloat32;
}

CudaPlan plan_cuda(const LayerShape& s, bool tf32, Pass pass, const CudaDevice& device, CudaTier wanted) {
  const Precision precision = cuda_precision(s.dtype, tf32);
  const char* never = only_stepwise(s);
  if (wanted == CudaTier::kStepwise) return stepwise(s, precision, device, "asked for by name");
  if (wanted != CudaTier::kAuto) {
    CudaPlan plan;
    if (never) {
      plan.tier = wanted;
      plan.precision = precision;
      plan.possible = s.B == 0;  // nothing to launch
      plan.reason = never;
    } else {
      plan = wanted == CudaTier::kCluster ? clustered(s, precision, pass, device)
                                          : persistent(s, precision, pass, device, wanted);
    }
    return plan;
  }
  if (never) return stepwise(s, precision, device, never);
  if (s.T < kFewSteps) return stepwise(s, precision, device, "few steps: they do not repay loading the weights");

  const CudaPlan one = persistent(s, precision, pass, device, CudaTier::kOneCta);
  const CudaPlan grid = persistent(s, precision, pass, device, CudaTier::kGrid);
  // A cluster has nothing to offer where one SM holds the weights: its SMs take further rows instead.
  CudaPlan cluster;
  cluster.possible = false;
  if (!one.possible) cluster = clustered(s, precision, pass, device);
  CudaPlan best = stepwise(s, precision, device, "");
  best.reason = one.possible || cluster.possible || grid.possible
                    ? "a large batch: the products fill the GPU, a step at a time"
                    : grid.geometry.reason;
  for (const CudaPlan* plan : std::initializer_list<const CudaPlan*>{&grid, &cluster, &one}) {
    if (plan->possible && plan->step_us < best.step_us) best = *plan;
  }
  return best;
}

const char* tier_name(CudaTier tier) {
  static const char* const names[] = {"auto", "one_cta", "grid", "stepwise", "cluster"};
  return names[static_cast<int>(tier)];
}

}  // namespace fastrnn
