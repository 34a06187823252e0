// The operators on the CPU: tensors in, plain parameter structs to the kernels, tensors out. Checks
// arguments, allocates every output, and chooses the instruction set.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "isa.h"
#include "tensors.h"

namespace fastrnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- instruction set --------------------------------------------------------------------------

std::vector<const KernelTable*> runnable_kernels() {  // best first
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  for (const KernelTable* table : {&kAvx512Bf16Kernels, &kAvx512Kernels, &kAvx2Kernels}) {
    if (table->runs_here()) tables.push_back(table);
  }
#endif
  tables.push_back(&kBaselineKernels);
  return tables;
}

const KernelTable* find_kernels(const std::string& name) {
  for (const KernelTable* table : runnable_kernels()) {
    if (name == table->name) return table;
  }
  return nullptr;
}

// FASTRNN_CPU_ISA names another instruction set than the best, for tests; a name that cannot run
// here is ignored, since nothing can be reported while a library loads (fastrnn/_ops.py warns).
const KernelTable* initial_kernels() {
  const char* name = std::getenv("FASTRNN_CPU_ISA");
  const KernelTable* wanted = name ? find_kernels(name) : nullptr;
  return wanted ? wanted : runnable_kernels().front();
}

std::atomic<const KernelTable*> current_kernels{initial_kernels()};

std::string cpu_isa() { return current_kernels.load()->name; }

std::string cpu_isas() {
  std::string names;
  for (const KernelTable* table : runnable_kernels()) {
    if (!names.empty()) names += ',';
    names += table->name;
  }
  return names;
}

void cpu_set_isa(std::string name) {
  const KernelTable* table = find_kernels(name);
  check(table, "name: expected one of ", cpu_isas(), ", got '", name, "'");
  current_kernels = table;
}

// ---- arguments --------------------------------------------------------------------------------

// Contiguous weights and states, kept alive for the length of a call.
struct Inputs {
  CheckedLayer checked;
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
  DirectionWeights directions[2];
};

void read_inputs(Inputs& in, const Tensor& x, const Tensor& h0, const std::optional<Tensor>& c0,
                 const std::vector<Tensor>& weights, const std::optional<Tensor>& batch_sizes,
                 const std::string& cell, bool bias) {
  check_layer(in.checked, x, h0, c0, weights, batch_sizes, cell, bias);
  in.x = with_contiguous_rows(x);
  in.h0 = as_contiguous(h0);
  if (c0) in.c0 = as_contiguous(*c0);
  in.weights.reserve(weights.size());
  for (const Tensor& weight : weights) in.weights.push_back(as_contiguous(weight));
  for (int d = 0; d < in.checked.shape.D; ++d) {
    const Tensor* w = in.weights.data() + d * in.checked.weights_a_direction;
    DirectionWeights& out = in.directions[d];
    out.w_ih = w[0].data_ptr();
    out.w_hh = w[1].data_ptr();
    if (bias) {
      out.b_ih = w[2].data_ptr();
      out.b_hh = w[3].data_ptr();
    }
    if (in.checked.shape.P) out.w_hr = w[bias ? 4 : 2].data_ptr();
  }
}

// ---- running kernels ----------------------------------------------------------------------------

CpuPlan plan_for(const LayerShape& shape, const KernelTable& kernels) {
  CpuMachine machine;
  machine.threads = static_cast<int>(torch::stable::get_num_threads());
  machine.lanes = kernels.lanes(shape.dtype);
  machine.tile_rows = kernels.tile_rows;
  return plan_cpu(shape, machine);
}

template <class Params>
void run(const Params& params, size_t (*workspace)(const Params&, const CpuPlan&),
         void (*kernel)(const Params&, const CpuPlan&, char*, const Parallel&), const CpuPlan& plan) {
  const Scratch scratch(workspace(params, plan));
  kernel(params, plan, scratch.data(), kTorchThreads);
}

// ---- operators ----------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rnn_forward(Tensor x, Tensor h0, std::optional<Tensor> c0,
                                                               std::vector<Tensor> weights,
                                                               std::optional<Tensor> batch_sizes, std::string cell,
                                                               bool bias, int64_t save) {
  Inputs in;
  read_inputs(in, x, h0, c0, weights, batch_sizes, cell, bias);
  check(save >= 0 && save <= 2, "save: expected 0, 1 or 2, got ", save);
  ForwardParams params;
  const LayerShape& s = params.shape = in.checked.shape;
  params.save = static_cast<Save>(save);
  const ScalarType dtype = x.scalar_type();
  const bool lstm = s.cell == CellKind::kLstm;
  const int64_t N = s.rows(), out = s.out_size();
  const Tensor y = batch_sizes ? empty({N, s.D * out}, dtype) : empty({s.T, s.B, s.D * out}, dtype);
  const Tensor hn = empty({s.D, s.B, out}, dtype);
  const Tensor cn = lstm ? empty({s.D, s.B, s.H}, dtype) : empty({0}, dtype);
  const bool save_gates = save == 1 && saved_of(s.cell) > 0;
  const Tensor gates = save_gates ? empty({s.D, N, saved_of(s.cell) * s.H}, dtype) : empty({0}, dtype);
  const Tensor cells = lstm && save ? empty({s.D, N, s.H}, compute_type(s.dtype)) : empty({0}, compute_type(s.dtype));
  if (N > 0) {
    params.x = rows_of(in.x);
    params.h0 = in.h0.data_ptr();
    params.c0 = lstm ? in.c0.data_ptr() : nullptr;
    for (int d = 0; d < s.D; ++d) params.weights[d] = in.directions[d];
    params.y = y.data_ptr();
    params.hn = hn.data_ptr();
    params.cn = lstm ? cn.data_ptr() : nullptr;
    params.gates = save_gates ? gates.data_ptr() : nullptr;
    params.cells = lstm && save ? cells.data_ptr() : nullptr;
    const KernelTable& kernels = *current_kernels.load();
    run(params, kernels.forward_workspace, kernels.forward, plan_for(s, kernels));
  }
  return {y, hn, cn, gates, cells};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> rnn_backward(
    std::optional<Tensor> grad_y, std::optional<Tensor> grad_hn, std::optional<Tensor> grad_cn, Tensor x, Tensor h0,
    std::optional<Tensor> c0, std::vector<Tensor> weights, std::optional<Tensor> batch_sizes, Tensor y, Tensor gates,
    Tensor cells, std::string cell, bool bias, int64_t needs) {
  Inputs in;
  read_inputs(in, x, h0, c0, weights, batch_sizes, cell, bias);
  BackwardParams params;
  const LayerShape& s = params.shape = in.checked.shape;
  check_saved(s, x, grad_y, grad_hn, grad_cn, y, gates, cells);
  check(needs >= 0 && needs <= 15, "needs: expected 0 to 15, got ", needs);
  const ScalarType dtype = x.scalar_type(), compute = compute_type(s.dtype);
  const bool lstm = s.cell == CellKind::kLstm;
  const int64_t N = s.rows();
  const bool need_x = needs & 1, need_h0 = needs & 2, need_c0 = lstm && (needs & 4), need_weights = needs & 8;

  const std::vector<int64_t> x_shape =
      batch_sizes ? std::vector<int64_t>{N, s.I} : std::vector<int64_t>{s.T, s.B, s.I};
  const Tensor grad_x = need_x ? empty(x_shape, dtype) : empty({0}, dtype);
  const Tensor grad_x_reverse = need_x && s.D == 2 ? empty(x_shape, dtype) : empty({0}, dtype);
  const Tensor grad_h0 = need_h0 ? empty({s.D, s.B, s.out_size()}, dtype) : empty({0}, dtype);
  const Tensor grad_c0 = need_c0 ? empty({s.D, s.B, s.H}, dtype) : empty({0}, dtype);
  std::vector<Tensor> grad_weights;
  if (need_weights) {
    for (const Tensor& weight : weights) {
      const auto sizes = weight.sizes();
      grad_weights.push_back(empty(std::vector<int64_t>(sizes.begin(), sizes.end()), compute));
    }
  }
  if (N == 0) {
    for (Tensor& grad : grad_weights) torch::stable::zero_(grad);
  } else if (needs) {
    Tensor dy, dhn, dcn;
    params.x = rows_of(in.x);
    params.h0 = in.h0.data_ptr();
    params.c0 = lstm ? in.c0.data_ptr() : nullptr;
    params.y = y.data_ptr();
    params.gates = saved_of(s.cell) && gates.dim() != 1 ? gates.data_ptr() : nullptr;
    params.cells = lstm ? cells.data_ptr() : nullptr;
    if (grad_y) {
      dy = with_contiguous_rows(*grad_y);
      params.grad_y = rows_of(dy);
    }
    if (grad_hn) {
      dhn = as_contiguous(*grad_hn);
      params.grad_hn = dhn.data_ptr();
    }
    if (grad_cn && lstm) {
      dcn = as_contiguous(*grad_cn);
      params.grad_cn = dcn.data_ptr();
    }
    if (need_x) {
      params.grad_x[0] = grad_x.data_ptr();
      params.grad_x[1] = grad_x_reverse.data_ptr();
    }
    params.grad_h0 = need_h0 ? grad_h0.data_ptr() : nullptr;
    params.grad_c0 = need_c0 ? grad_c0.data_ptr() : nullptr;
    params.need_weights = need_weights;
    for (int d = 0; d < s.D; ++d) {
      params.weights[d] = in.directions[d];
      if (!need_weights) continue;
      const Tensor* grads = grad_weights.data() + d * in.checked.weights_a_direction;
      WeightGradients& to = params.grad_weights[d];
      to.w_ih = grads[0].data_ptr();
      to.w_hh = grads[1].data_ptr();
      if (bias) {
        to.b_ih = grads[2].data_ptr();
        to.b_hh = grads[3].data_ptr();
      }
      if (s.P) to.w_hr = grads[bias ? 4 : 2].data_ptr();
    }
    const KernelTable& kernels = *current_kernels.load();
    run(params, kernels.backward_workspace, kernels.backward, plan_for(s, kernels));
  }
  if (compute != dtype) {
    for (Tensor& grad : grad_weights) grad = torch::stable::to(grad, dtype);
  }
  const Tensor input_gradient = need_x && s.D == 2 ? torch::stable::subtract(grad_x, grad_x_reverse, -1.0) : grad_x;
  return {input_gradient, grad_h0, grad_c0, grad_weights};
}

// ---- limits of the machine ------------------------------------------------------------------------

template <class F>
double best_rate(F&& work) {  // units of work() a second, the best of a few tries of about 10 ms
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const double units = work();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, units / seconds.count());
  }
  return best;
}

double cpu_fma_peak() {
  return best_rate([] { return current_kernels.load()->fma_loop(2'000'000); });
}

double cpu_read_bandwidth(int64_t bytes) {
  check(bytes >= 1024, "bytes: expected at least 1024, got ", bytes);
  std::vector<float> data(bytes / sizeof(float), 1.0f);
  const int64_t repeats = std::max<int64_t>(1, (1 << 30) / bytes);
  return best_rate([&] { return current_kernels.load()->read_loop(data.data(), data.size(), repeats); });
}

}  // namespace

const KernelTable& kernels_in_use() { return *current_kernels.load(); }

}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("rnn_forward", TORCH_BOX(&fastrnn::rnn_forward));
  m.impl("rnn_backward", TORCH_BOX(&fastrnn::rnn_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fastrnn::cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&fastrnn::cpu_isas));
  m.impl("cpu_set_isa", TORCH_BOX(&fastrnn::cpu_set_isa));
  m.impl("cpu_fma_peak", TORCH_BOX(&fastrnn::cpu_fma_peak));
  m.impl("cpu_read_bandwidth", TORCH_BOX(&fastrnn::cpu_read_bandwidth));
}
