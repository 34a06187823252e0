// The operators on the CPU: tensors in, plain parameter structs to the kernels, tensors out. Checks
// arguments, allocates every output, and chooses the instruction set.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/isa/table.h"
#include "cpu/ops/tensors.h"
#include "ops/check.h"

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

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fastrnn::cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&fastrnn::cpu_isas));
  m.impl("cpu_set_isa", TORCH_BOX(&fastrnn::cpu_set_isa));
  m.impl("cpu_fma_peak", TORCH_BOX(&fastrnn::cpu_fma_peak));
  m.impl("cpu_read_bandwidth", TORCH_BOX(&fastrnn::cpu_read_bandwidth));
}
