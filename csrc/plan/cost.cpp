#include "plan/cost.h"

namespace fastrnn {

LayerCost cost_of(const LayerShape& s, bool training, bool widened) {
  const int64_t G = gates_of(s.cell), out = s.out_size();
  const int64_t recurrent = out / s.variant.heads;  // columns of W_hh
  const int64_t storage = static_cast<int64_t>(size_of(s.dtype));
  const int64_t compute = s.dtype == Dtype::kDouble ? 8 : 4;
  const int64_t state = facts_of(s.cell).has_cell ? compute * s.H : 0;
  const double rows = static_cast<double>(s.T) * static_cast<double>(s.B) * s.D;
  const double product = 2.0 * rows * static_cast<double>(G * s.H * (s.I + recurrent) + s.P * s.H);
  LayerCost cost;
  cost.flops = training ? 3 * product : product;
  cost.weight_bytes = storage * s.D * (G * s.H * (s.I + recurrent) + s.P * s.H);
  cost.step_weight_bytes = (widened ? compute : storage) * s.D * (G * s.H * recurrent + s.P * s.H);
  if (training) {
    cost.saved_bytes_per_step = s.D * s.B * (storage * saved_of(s) * s.H + state);
    cost.saved_bytes_per_step_recompute = s.D * s.B * state;
  }
  return cost;
}

}  // namespace fastrnn
