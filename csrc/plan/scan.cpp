#include "plan/scan.h"

#include <algorithm>
#include <limits>

namespace fastrnn {
namespace {

// A parallel region costs a few microseconds: below this many column steps one thread is faster.
constexpr int64_t kSerialElements = 16 << 10;
// Multiply-adds below which a second thread costs more than it saves.
constexpr int64_t kSerialProduct = 200'000;
// Steps of a part, below which the meeting of those who share a sequence costs more than it saves.
constexpr int64_t kLeastSteps = 128;

}  // namespace

// Batch groups walk through whole rows and units through pieces of them: of the ways to make equal shares
// the one with the most batch groups.
ScanPlan plan_scan(const ScanShape& s, int64_t result_bytes, int available, int64_t l3_bytes) {
  ScanPlan plan;
  // Results larger than that would push each other out of the last cache before anybody reads them: past the caches
  // no line has to be read before it is written.
  plan.stream = result_bytes > l3_bytes / 2;
  const int64_t elements = s.rows() * s.O;
  const int64_t threads = elements < kSerialElements ? 1 : available;
  const int64_t blocks = s.D * ((s.H() + 63) / 64);  // see Scan::kUnitBlock
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t batch = std::max<int64_t>(1, std::min(threads, s.B)); batch >= 1; --batch) {
    const int64_t units = std::max<int64_t>(1, std::min(threads / batch, blocks));
    const int64_t largest = ((s.B + batch - 1) / batch) * ((blocks + units - 1) / units);
    if (largest >= least) continue;
    least = largest;
    plan.batch_groups = static_cast<int>(batch);
    plan.unit_groups = static_cast<int>(units);
  }
  return plan;
}

// The first part of a sequence is walked through once, and each other one once more for what it makes of any state:
// so there is one part more than there are workers, and two passes over a part are the whole time.
ElementwisePlan plan_elementwise(const ElementwiseInputs& in, int64_t result_bytes, int available, int64_t l3_bytes) {
  const ScanShape& s = in.scan.shape;
  ElementwisePlan plan{plan_scan(s, result_bytes, available, l3_bytes)};
  if (!facts_of(in.cell).linear || s.rows() * s.O < kSerialElements) return plan;
  const int64_t most = s.T / kLeastSteps - 1;
  const int64_t groups = std::min<int64_t>(available / plan.workers(), most);
  if (groups >= 2) plan.time_groups = static_cast<int>(groups);
  return plan;
}

SlstmPlan plan_slstm(const SlstmShape& s, int available) {
  SlstmPlan plan;
  const int64_t threads = s.T * s.B * 4 * s.H * s.head_size() < kSerialProduct ? 1 : available;
  int64_t least = std::numeric_limits<int64_t>::max();
  // Heads first: who shares one packs its weights again.
  for (int64_t heads = std::max<int64_t>(1, std::min<int64_t>(threads, s.heads)); heads >= 1; --heads) {
    const int64_t batch = std::max<int64_t>(1, std::min(threads / heads, s.B));
    const int64_t largest = ((s.heads + heads - 1) / heads) * ((s.B + batch - 1) / batch);
    if (largest >= least) continue;
    least = largest;
    plan.head_groups = static_cast<int>(heads);
    plan.batch_groups = static_cast<int>(batch);
  }
  return plan;
}

int gate_product_threads(const GateProductParams& p, int threads) {
  return p.B * p.O * p.K * p.I < kSerialProduct ? 1 : threads;
}

}  // namespace fastrnn
