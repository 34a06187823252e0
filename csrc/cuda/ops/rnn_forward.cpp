// Forward pass of a layer: one GEMM for the input's part of all gates, unless the time loop's kernel makes that too,
// then the time loop of its tier.
#include "cuda/device/graph.h"
#include "cuda/persistent/loop.h"
#include "cuda/stepwise/graphs.h"
#include "cuda/stepwise/loop.h"
#include "cuda/stepwise/stages_loop.h"

namespace fastrnn::cuda {

// Memory beyond the results: x's part of the gates, (D,N,G*H) in the layer's type, except where gates
// are saved (it then lies in them and is overwritten step by step), and a few (D,B,.) buffers.
void forward(const Layer& layer, const RnnArguments& in, const RnnResults& results, Tier wanted, bool training) {
  const LayerShape& shape = layer.shape();
  const int64_t H = shape.H, D = shape.D, N = layer.N, G = layer.G;
  CudaPlan plan = plan_pass(layer, Pass::kForward, wanted, training);
  if (shape.B == 0) return;
  if (shape.variant.any()) {
    count(Tier::kStepwise, Pass::kForward);
    return forward_stages(layer, in, results);
  }
  const ForwardSequence s{.h0 = in.h0,
                          .c0 = in.c0,
                          .gx = results.save_gates ? results.gates : layer.make({D, N, G * H}),
                          .y = results.y,
                          .hn = results.hn,
                          .cn = results.cn,
                          .save_gates = results.save_gates,
                          .save_cells = results.save_cells,
                          .gates = results.gates,
                          .cells = results.cells};
  const auto project_rows = [&](int64_t first, int64_t count) {
    for (int d = 0; d < D; ++d) {
      multiply(columns(rows(slice(s.gx, d), first, count), 0, G * H), rows(layer.x(), first, count),
               transposed(layer.w_ih(d)), layer.tf32);
    }
  };
  const auto project = [&] { project_rows(0, N); };
  const bool beside = plan.chunks > 1 && !is_capturing(layer.stream);
  if (!beside) plan.chunks = 1;
  if (!plan.projects && !beside) project();
  // Beyond the rows' lengths the loops write nothing. x's part of the gates, where it lies in them, is not read
  // there.
  layer.clear_padding(s.y, 1);
  if (s.save_gates) layer.clear_padding(s.gates, D);
  if (s.save_cells) layer.clear_padding(s.cells, D);
  const bool persistent = is_persistent(plan.tier) && shape.T > 0;
  const bool graph = plan.tier == Tier::kStepwiseGraph;
  const bool done = beside       ? run_overlapped(layer, plan, s, project_rows)
                    : persistent ? run_persistent(layer, plan, s)
                                 : graph && run_graph(layer, plan, s);
  if (!done) {
    if (plan.projects || beside) project();
    run_stepwise(layer, s);
    count(Tier::kStepwise, Pass::kForward);
  }
}

}  // namespace fastrnn::cuda
