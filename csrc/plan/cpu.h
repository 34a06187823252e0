// Which kernel runs a layer and how it is cut up: a pure function of shapes and machine, so that it
// can be shown to the user (fastrnn.explain) and tested without the machine.
#pragma once
#include "params/rnn.h"

namespace fastrnn {

struct CpuMachine {
  int threads = 1;
  int lanes = 16;     // lanes of a vector register in the compute dtype
  int tile_rows = 6;  // rows of a full register tile
};

struct CpuPlan {
  int batch_groups = 1;        // workers that split the batch; they never wait for each other
  int unit_groups = 1;         // workers that split the hidden units; a barrier a step
  int direction_groups = 1;    // 2: the directions run at the same time
  int64_t forward_chunk = 1;   // steps whose input projection is computed at once
  int64_t backward_chunk = 1;  // steps whose weight gradients are computed at once
  bool direct = false;         // too few rows to repay packing: weights are read where they lie
  const char* reason = "";
};

// packed: the weights lie packed already (rnn_pack), so that no number of rows is too small to use them so.
CpuPlan plan_cpu(const LayerShape& shape, const CpuMachine& machine, bool packed = false);

// The same of a layer with weights of bfloat16, or of int8 (cpu/quantized): only its units are split.
CpuPlan plan_quantized(const LayerShape& shape, bool int8, int threads);

}  // namespace fastrnn
