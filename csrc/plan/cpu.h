// Which kernel runs a layer and how it is cut up: a pure function of shapes and machine, so that it
// can be shown to the user (fastrnn.explain) and tested without the machine.
#pragma once
#include "params/rnn.h"

namespace fastrnn {

// What a processor has and what it takes to use several of its cores, as data: a plan can be made for any. The
// defaults are those of a Zen 4 or Zen 5, for whoever cannot ask (cpu/ops/this_machine.cpp does).
struct CpuMachine {
  int threads = 1;
  int lanes = 16;               // lanes of a vector register in the compute dtype
  int tile_rows = 6;            // rows of a full register tile
  int64_t l2_bytes = 1 << 20;   // a core's own cache
  int64_t l3_bytes = 32 << 20;  // the last one, which cores share
  // Nanoseconds that two threads spend at a meeting, and that a parallel region costs beside its work: measured on a
  // Zen 5 as .55 to .9 us a step and 10 to 17 us a call.
  int meeting_ns = 900;
  int region_ns = 10000;
};

struct CpuPlan {
  int batch_groups = 1;            // workers that split the batch; they never wait for each other
  int unit_groups = 1;             // workers that split the hidden units; a barrier a step
  int direction_groups = 1;        // 2: the directions run at the same time
  int64_t forward_chunk = 1;       // steps whose input projection is computed at once
  int64_t backward_chunk = 1;      // steps whose weight gradients are computed at once
  int64_t near_bytes = 512 << 10;  // what stays in a core's cache while other things pass through it
  bool direct = false;             // too few rows to repay packing: weights are read where they lie
  const char* reason = "";

  int groups() const { return direction_groups * batch_groups * unit_groups; }
};

// packed: the weights lie packed already (rnn_pack), so that no number of rows is too small to use them so.
CpuPlan plan_cpu(const LayerShape& shape, const CpuMachine& machine, bool packed = false);

}  // namespace fastrnn
