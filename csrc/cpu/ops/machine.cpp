// The operators that ask about the machine, switch its instruction set and give its memory back.
#include <chrono>
#include <string>
#include <vector>

#include "cpu/isa/choose.h"
#include "cpu/isa/list.h"
#include "cpu/ops/scratch.h"
#include "cpu/ops/tensors.h"
#include "ops/check.h"

namespace fastrnn {
namespace {

// ---- instruction set --------------------------------------------------------------------------

std::string cpu_isa() { return kernels_in_use().name; }

// With the one in use, which may be one that is chosen by name alone.
std::string cpu_isas() {
  std::string names;
  bool in_use = false;
  for (const KernelTable* table : runnable_kernels()) {
    if (!names.empty()) names += ',';
    names += table->name;
    in_use = in_use || table == &kernels_in_use();
  }
  return in_use ? names : names + ',' + cpu_isa();
}

void cpu_set_isa(std::string name) {
  const KernelTable* table = find_kernels(name);
  check(table || name != isa_name(Isa::kAmx),
        "name: expected a processor with AMX-TILE and AMX-BF16 beside AVX512-BF16, and a Linux that grants its tiles "
        "to this process, got 'amx' where these are ",
        cpu_isas());
  check(table, "name: expected one of ", cpu_isas(), ", got '", name, "'");
  use_kernels(*table);
}

// ---- memory -----------------------------------------------------------------------------------

int64_t cpu_release_scratch() {
  release_freed_memory();  // malloc does not say how much it was
  return static_cast<int64_t>(Scratch::release());
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
  return best_rate([] { return kernels_in_use().fma_loop(2'000'000); });
}

double cpu_read_bandwidth(int64_t bytes) {
  check(bytes >= 1024, "bytes: expected at least 1024, got ", bytes);
  std::vector<float> data(bytes / sizeof(float), 1.0f);
  const int64_t repeats = std::max<int64_t>(1, (1 << 30) / bytes);
  return best_rate([&] { return kernels_in_use().read_loop(data.data(), data.size(), repeats); });
}

double cpu_cell_rate(std::string cell) {
  const CellKind kind = parse_cell(cell);
  return best_rate([&] { return kernels_in_use().cell_loop(kind, 50'000); });
}

// Threads that do nothing but meet. A thread that has several workers, where fewer are at hand than asked for, goes
// through each meeting for all of them, as the kernels do.
struct Meetings {
  static constexpr int kCount = 5000;
  int threads;
  Barrier barrier;

  static void body(int64_t begin, int64_t end, void* self) {
    Meetings& meetings = *static_cast<Meetings*>(self);
    for (int64_t i = 1; i <= kCount; ++i) {
      for (int64_t r = begin; r < end; ++r) meetings.barrier.arrive(i * meetings.threads);
      meetings.barrier.wait(i * meetings.threads);
    }
  }
};

double cpu_meeting(int64_t threads) {
  check(threads >= 1 && threads <= 1 << 10, "threads: expected 1 to 1024, got ", threads);
  return 1 / best_rate([&] {
           Meetings meetings{static_cast<int>(threads), {}};
           meetings.barrier.reset();
           kTorchThreads.run(threads, Meetings::body, &meetings);
           return static_cast<double>(Meetings::kCount);
         });
}

}  // namespace

}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fastrnn::cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&fastrnn::cpu_isas));
  m.impl("cpu_set_isa", TORCH_BOX(&fastrnn::cpu_set_isa));
  m.impl("cpu_release_scratch", TORCH_BOX(&fastrnn::cpu_release_scratch));
  m.impl("cpu_fma_peak", TORCH_BOX(&fastrnn::cpu_fma_peak));
  m.impl("cpu_read_bandwidth", TORCH_BOX(&fastrnn::cpu_read_bandwidth));
  m.impl("cpu_cell_rate", TORCH_BOX(&fastrnn::cpu_cell_rate));
  m.impl("cpu_meeting", TORCH_BOX(&fastrnn::cpu_meeting));
}
