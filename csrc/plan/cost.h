// What a layer asks of any machine at least: arithmetic, weights to read, values to keep.
#pragma once
#include "params/rnn.h"

namespace fastrnn {

struct LayerCost {
  double flops = 0;               // of the products; training: forward and backward
  int64_t weight_bytes = 0;       // in the layer's type
  int64_t step_weight_bytes = 0;  // recurrent weights that a step reads, in the type that multiplies
  // What training keeps for backward, with save="gates" and "recompute"; 0 without training.
  int64_t saved_bytes_per_step = 0, saved_bytes_per_step_recompute = 0;
};

// widened: half types multiply in float, as on the CPU.
LayerCost cost_of(const LayerShape& shape, bool training, bool widened);

}  // namespace fastrnn
