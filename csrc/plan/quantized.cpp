#include "plan/quantized.h"

#include <algorithm>

namespace fastrnn {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Multiply-adds of int8 in a nanosecond, with weights from the L2 and from the L3 cache, measured on a Zen 5 (150 at
// H = 256, 100 at 512 and 1024); bfloat16 is half as fast.
constexpr double kNearRate = 150, kFarRate = 100;
constexpr int64_t kQuantizedChunkBytes = 256 << 10, kQuantizedChunkRows = 64;

}  // namespace

CpuPlan plan_quantized(const LayerShape& s, bool int8, const CpuMachine& machine) {
  CpuPlan plan;
  const int64_t G = gates_of(s.cell), blocks = ceil_div(s.H, 16);
  const double weights = static_cast<double>(G) * s.H * (s.I + s.out_size()), bytes = int8 ? 1 : 2;
  // The work of all, by workers who have so many parts of a direction's weights.
  const auto work = [&](int parts) {
    const bool near = weights * bytes / parts <= static_cast<double>(machine.l2_bytes);
    return static_cast<double>(s.rows()) * weights * s.D * bytes / (near ? kNearRate : kFarRate);
  };
  const double meetings = static_cast<double>(s.T) * machine.meeting_ns * (s.P ? 2 : 1);
  double least = work(1);
  for (int directions = 1; directions <= s.D; ++directions) {
    for (int units = 1; units * directions <= machine.threads && units <= blocks; ++units) {
      if (units * directions == 1) continue;
      const double ns = work(units) / (units * directions) + machine.region_ns + (units > 1 ? meetings : 0);
      if (ns >= least) continue;
      least = ns;
      plan.direction_groups = directions;
      plan.unit_groups = units;
    }
  }
  plan.reason = plan.unit_groups > 1         ? "the hidden units are split, a barrier a step"
                : plan.direction_groups == 2 ? "the directions run at the same time"
                                             : "one thread";
  // Whatever the threads: rows that are multiplied together round alike, and so results hang on the layer alone.
  const int64_t rows = std::max<int64_t>(1, s.B), row_bytes = blocks * 16 * G * 4;
  const int64_t most = std::max<int64_t>(8, std::min(kQuantizedChunkRows, kQuantizedChunkBytes / row_bytes));
  plan.forward_chunk = std::max<int64_t>(1, std::min(s.T, ceil_div(most, rows)));
  return plan;
}

}  // namespace fastrnn
