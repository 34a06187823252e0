// Forward pass of a layer: one GEMM for the input's part of all gates, unless the time loop's kernel makes that too,
// then the time loop of its tier.
#include "cuda/persistent/loop.h"
#include "cuda/stepwise/loop.h"

namespace fastrnn::cuda {

// Memory beyond the results: x's part of the gates, (D,N,G*H) in the layer's type, except where gates
// are saved (it then lies in them and is overwritten step by step), and a few (D,B,.) buffers.
Forward forward(const Layer& layer, const Tensor& h0, const std::optional<Tensor>& c0, Save save, Tier wanted) {
  const LayerShape& shape = layer.shape();
  const int64_t B = shape.B, H = shape.H, D = shape.D, N = layer.N, G = layer.G;
  const bool lstm = layer.is(CellKind::kLstm);
  const CudaPlan plan = plan_pass(layer, Pass::kForward, wanted, save != Save::kNothing);

  ForwardSequence s{.h0 = h0,
                    .c0 = c0,
                    .gx = layer.make({0}),
                    .y = layer.make(layer.output_sizes()),
                    .hn = layer.make({D, B, shape.out_size()}),
                    .cn = lstm ? layer.make({D, B, H}) : layer.make({0}),
                    .save_gates = save == Save::kGates && layer.saved,
                    .save_cells = save != Save::kNothing && lstm,
                    .gates = layer.make({0}),
                    .cells = layer.make_compute({0})};
  if (s.save_gates) s.gates = layer.make({D, N, layer.saved * H});
  if (s.save_cells) s.cells = layer.make_compute({D, N, H});
  if (B > 0) {
    s.gx = s.save_gates ? s.gates : layer.make({D, N, G * H});
    const auto project = [&] {
      for (int d = 0; d < D; ++d) {
        multiply(columns(slice(s.gx, d), 0, G * H), layer.x(), transposed(layer.w_ih(d)), layer.tf32);
      }
    };
    if (!plan.projects) project();
    // Beyond the rows' lengths the loops write nothing. x's part of the gates, where it lies in them, is not read
    // there.
    layer.clear_padding(s.y, 1);
    if (s.save_gates) layer.clear_padding(s.gates, D);
    if (s.save_cells) layer.clear_padding(s.cells, D);
    const bool persistent = plan.tier != Tier::kStepwise && shape.T > 0;
    if (!persistent || !run_persistent(layer, plan, s)) {
      if (plan.projects) project();
      run_stepwise(layer, s);
      count(Tier::kStepwise, Pass::kForward);
    }
  }
  return {s.y, s.hn, s.cn, s.gates, s.cells};
}

}  // namespace fastrnn::cuda
