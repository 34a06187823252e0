#include "plan/cpu.h"

#include <algorithm>

namespace fastrnn {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Chunks of steps. Forward: long enough that a product has rows to reuse a panel for, short enough
// that the chunk is still in the L2 cache when its steps read it. Backward: each chunk adds to the
// whole weight gradients once, which 384 rows feel (9% at H = 1024) and 1024 do not.
constexpr int64_t kForwardChunkBytes = 512 << 10;
constexpr int64_t kForwardChunkRows = 96;
constexpr int64_t kBackwardChunkRows = 1024;
// Recurrent weights that a core keeps in its L2 cache beside everything else.
constexpr int64_t kCacheBytes = 640 << 10;
// A parallel region costs a few microseconds: below this much work one thread is faster.
constexpr double kSerialFlops = 4e5;
// Multiply-adds of a step of a quantized layer from which a second thread repays its meetings, and those of a whole
// call from which it repays the parallel region; bfloat16 is half as fast.
constexpr double kQuantizedStep = 6e5, kQuantizedCall = 1.5e6;
constexpr int64_t kQuantizedChunkBytes = 256 << 10, kQuantizedChunkRows = 64;
// Rows, and steps of all of them, for which packing costs more than it saves. On a Zen 5, float32, H = 256, one row
// where weights lie takes .53 of the packed time at 3 steps, .8 at 8, 1.03 at 16.
constexpr int64_t kDirectRows = 4, kDirectRowSteps = 10;

}  // namespace

CpuPlan plan_cpu(const LayerShape& s, const CpuMachine& machine, bool packed) {
  CpuPlan plan;
  const int64_t G = gates_of(s.cell);
  const double flops = 2.0 * s.rows() * G * s.H * (s.I + s.out_size()) * s.D;
  plan.direct = !packed && !s.variant.any() && s.B <= kDirectRows && s.T * s.B <= kDirectRowSteps;

  int threads = machine.threads;
  if (flops < kSerialFlops) threads = 1;
  if (s.D == 2 && threads >= 2) {
    plan.direction_groups = 2;
    threads /= 2;
  }
  // Batch groups never wait for each other; unit groups meet at a barrier every step, but each core
  // then reads only its share of the recurrent weights. So the batch is split while the weights fit
  // a core's cache and every group can fill its tiles, the units otherwise.
  const int64_t element = s.dtype == Dtype::kDouble ? 8 : 4;
  const int64_t unit_blocks = ceil_div(s.H, machine.lanes);
  const bool weights_fit = G * s.H * s.out_size() * element <= kCacheBytes;
  int best_batch = 1;
  for (int groups = 1; groups <= threads; ++groups) {
    const bool units_left = unit_blocks * groups >= threads;
    const bool rows_left = s.B >= groups * static_cast<int64_t>(machine.tile_rows);
    if (threads % groups == 0 && rows_left && (weights_fit || !units_left || groups == 1)) best_batch = groups;
  }
  plan.batch_groups = best_batch;
  plan.unit_groups = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads / best_batch, unit_blocks)));
  plan.reason = threads == 1 && plan.direction_groups == 2 ? "the directions run at the same time"
                : threads == 1                             ? "one thread"
                : plan.unit_groups == 1                    ? "the batch is split: its rows are independent"
                : plan.batch_groups == 1 ? "few rows or large weights: the hidden units are split, a barrier a step"
                                         : "batch and hidden units are split";

  const int64_t group_rows = std::max<int64_t>(1, ceil_div(s.B, plan.batch_groups));
  const int64_t row_bytes = ceil_div(unit_blocks, plan.unit_groups) * machine.lanes * G * element;
  const int64_t steps =
      std::max(ceil_div(kForwardChunkRows, group_rows), kForwardChunkBytes / (group_rows * row_bytes));
  plan.forward_chunk = std::max<int64_t>(1, std::min(s.T, steps));
  plan.backward_chunk = std::max<int64_t>(1, std::min(s.T, ceil_div(kBackwardChunkRows, std::max<int64_t>(1, s.B))));
  return plan;
}

CpuPlan plan_quantized(const LayerShape& s, bool int8, int threads) {
  CpuPlan plan;
  const int64_t G = gates_of(s.cell), blocks = ceil_div(s.H, 16);
  const double weight = int8 ? 1 : 2, step = weight * static_cast<double>(s.B) * G * s.H * s.out_size();
  const double call = weight * static_cast<double>(s.rows()) * G * s.H * (s.I + s.out_size()) * s.D;
  int left = threads;
  if (s.D == 2 && threads >= 2 && call >= kQuantizedCall) {
    plan.direction_groups = 2;
    left /= 2;
  }
  const int64_t worth = call < kQuantizedCall ? 1 : 1 + static_cast<int64_t>(step / kQuantizedStep);
  plan.unit_groups = static_cast<int>(std::max<int64_t>(1, std::min({static_cast<int64_t>(left), blocks, worth})));
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
