#include <atomic>
#include <cstdlib>

#include "cpu/isa/choose.h"

namespace fastrnn {

std::vector<const KernelTable*> runnable_kernels() {  // best first
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  for (const KernelTable* table : {&kAvx512Bf16Kernels, &kAvx512Kernels, &kAvx2Kernels}) {
    if (table->runs_here()) tables.push_back(table);
  }
#elif defined(__aarch64__)
  for (const KernelTable* table : {&kNeonBf16Kernels, &kNeonKernels}) {
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

namespace {

// FASTRNN_CPU_ISA names another instruction set than the best, for tests; a name that cannot run
// here is ignored, since nothing can be reported while a library loads (fastrnn/_ops/library.py warns).
const KernelTable* initial_kernels() {
  const char* name = std::getenv("FASTRNN_CPU_ISA");
  const KernelTable* wanted = name ? find_kernels(name) : nullptr;
  return wanted ? wanted : runnable_kernels().front();
}

std::atomic<const KernelTable*> current_kernels{initial_kernels()};

}  // namespace

const KernelTable& kernels_in_use() { return *current_kernels.load(); }
void use_kernels(const KernelTable& table) { current_kernels = &table; }

}  // namespace fastrnn
