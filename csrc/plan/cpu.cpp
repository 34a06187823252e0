#include "plan/cpu.h"

#include <algorithm>

namespace fastrnn {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Chunks of steps. Forward: long enough that a product has rows to reuse a panel for, short enough
// that the chunk is still in the L2 cache when its steps read it. Backward: each chunk adds to the
// whole weight gradients once, which 384 rows feel (9% at H = 1024) and 1024 do not.
constexpr int64_t kForwardChunkRows = 96;
constexpr int64_t kBackwardChunkRows = 1024;
// Caches are of this size at least and at most, whatever a system says of them.
constexpr int64_t kLeastCache = 256 << 10, kMostCache = 4 << 20;
// How fast a core works, in a nanosecond: multiplications and additions a lane, of a product with one row (which is
// bound by reading the weights) and with several; bytes of weights that are packed or read where they lie.
constexpr double kOneRowFlops = 5, kFlops = 9, kPackedBytes = 30, kReadBytes = 90;
// Rows, and steps of all of them, for which packing costs more than it saves. On a Zen 5, float32, H = 256, one row
// where weights lie takes .53 of the packed time at 3 steps, .8 at 8, 1.03 at 16. Recurrent weights that no L2 cache
// holds are read as fast either way: H = 512 takes .9 to 1.04 at 16 steps, 1024 .85 to .98.
constexpr int64_t kDirectRows = 4, kDirectRowSteps = 10, kDirectFarSteps = 16;

// Of a direction's recurrent weights as they are multiplied.
int64_t recurrent_bytes(const LayerShape& s) {
  return gates_of(s.cell) * s.H * s.out_size() * (s.dtype == Dtype::kDouble ? 8 : 4);
}

// What a pass over the layer takes if it is cut up like this, in nanoseconds, about: what decides between one thread
// and several is how much a step's work is beside a meeting, and the whole call's beside that of waking threads.
double time_of(const LayerShape& s, const CpuMachine& machine, const CpuPlan& plan) {
  const double G = gates_of(s.cell), H = static_cast<double>(s.H), out = static_cast<double>(s.out_size());
  const double rows = static_cast<double>(s.rows()), steps = static_cast<double>(s.T);
  const double element = static_cast<double>(size_of(s.dtype));
  const double input = 2 * G * H * static_cast<double>(s.I);
  const double recurrent = 2 * G * H * out / s.variant.heads + (s.P ? 2 * H * out : 0);  // of a row and step
  const bool one_row = rows <= steps * plan.batch_groups;
  double work = rows * (input / kFlops + recurrent / (one_row ? kOneRowFlops : kFlops)) / machine.lanes;
  const double bytes = (input + recurrent) / 2 * element;
  work = plan.direct ? std::max(work, bytes / kReadBytes) : work + bytes / kPackedBytes;
  const double directions = s.D / plan.direction_groups;  // that come one after the other
  if (plan.groups() == 1) return work * directions;
  // The largest shares.
  const double blocks = static_cast<double>(ceil_div(s.H, machine.lanes)), B = static_cast<double>(s.B);
  const double units = static_cast<double>(ceil_div(ceil_div(s.H, machine.lanes), plan.unit_groups)) / blocks;
  const double batch = static_cast<double>(ceil_div(s.B, plan.batch_groups)) / B;
  const double meetings = plan.unit_groups > 1 ? steps * (s.P ? 2 : 1) : 0;
  return work * directions * units * batch + machine.region_ns +
         meetings * machine.meeting_ns * (plan.unit_groups + 3) / 5;  // the more, the longer the last is awaited
}

// The layer on so many threads.
CpuPlan split(const LayerShape& s, const CpuMachine& machine, int threads, CpuPlan plan) {
  if (s.D == 2 && threads >= 2) {
    plan.direction_groups = 2;
    threads /= 2;
  }
  // Batch groups never wait for each other; unit groups meet at a barrier every step, but each core
  // then reads only its share of the recurrent weights. So the batch is split while the weights fit
  // a core's cache and every group can fill its tiles, the units otherwise. Weights that fill the cache
  // alone do so where each panel serves several tiles, which then wait for it less than for a meeting: as
  // fast on two quiet cores (LSTM 100,32,256), and 5% faster where others are at work.
  const int64_t unit_blocks = ceil_div(s.H, machine.lanes);
  const int64_t weights = recurrent_bytes(s);
  int best_batch = 1;
  for (int groups = 1; groups <= threads; ++groups) {
    const bool units_left = unit_blocks * groups >= threads;
    const bool rows_left = s.B >= groups * static_cast<int64_t>(machine.tile_rows);
    const bool many_rows = s.B > groups * static_cast<int64_t>(2 * machine.tile_rows);
    const bool weights_fit = weights <= (many_rows ? 2 * plan.near_bytes : plan.near_bytes / 4 * 5);
    if (threads % groups == 0 && rows_left && (weights_fit || !units_left || groups == 1)) best_batch = groups;
  }
  plan.batch_groups = best_batch;
  plan.unit_groups = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads / best_batch, unit_blocks)));
  return plan;
}

}  // namespace

CpuPlan plan_cpu(const LayerShape& s, const CpuMachine& machine, bool packed) {
  CpuPlan plan;
  plan.near_bytes = std::clamp(machine.l2_bytes, kLeastCache, kMostCache) / 2;
  const bool far = recurrent_bytes(s) > 2 * plan.near_bytes;
  plan.direct = !packed && !s.variant.any() && s.B <= kDirectRows &&
                s.T * s.B <= (far && s.B == 1 ? kDirectFarSteps : kDirectRowSteps);
  // All threads, half of them, and so on, against one: which does it soonest. A layer without rows has nothing to do.
  if (s.rows() > 0 && machine.threads > 1) {
    const CpuPlan one = plan;
    double best = time_of(s, machine, one);
    if (best > machine.region_ns) {
      for (int threads = machine.threads; threads > 1; threads /= 2) {
        const CpuPlan several = split(s, machine, threads, one);
        const double time = time_of(s, machine, several);
        if (time >= best) continue;
        best = time;
        plan = several;
      }
    }
  }
  plan.reason = plan.groups() == 1                       ? "one thread"
                : plan.groups() == plan.direction_groups ? "the directions run at the same time"
                : plan.unit_groups == 1                  ? "the batch is split: its rows are independent"
                : plan.batch_groups == 1 ? "few rows or large weights: the hidden units are split, a barrier a step"
                                         : "batch and hidden units are split";

  const int64_t G = gates_of(s.cell), element = s.dtype == Dtype::kDouble ? 8 : 4;
  const int64_t unit_blocks = ceil_div(s.H, machine.lanes);
  const int64_t group_rows = std::max<int64_t>(1, ceil_div(s.B, plan.batch_groups));
  const int64_t row_bytes = ceil_div(unit_blocks, plan.unit_groups) * machine.lanes * G * element;
  const int64_t steps = std::max(ceil_div(kForwardChunkRows, group_rows), plan.near_bytes / (group_rows * row_bytes));
  plan.forward_chunk = std::max<int64_t>(1, std::min(s.T, steps));
  plan.backward_chunk = std::max<int64_t>(1, std::min(s.T, ceil_div(kBackwardChunkRows, std::max<int64_t>(1, s.B))));
  return plan;
}

}  // namespace fastrnn
