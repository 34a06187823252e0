// The CPUs of this process, for threads.h. A limit that files and settings make (cgroups, FASTRNN_CPUS) is read by
// fastrnn/_ops/threads.py when the package loads; where there is no Python there is none.
#include "cpu/ops/threads.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "cpu/ops/own_cpus.h"
#include "cpu/ops/tensors.h"
#include "ops/check.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>

extern "C" void __kmpc_fork_call() __attribute__((weak));  // LLVM's and Intel's OpenMP have it, GNU's does not
#endif

namespace fastrnn {
namespace {

constexpr int kAll = std::numeric_limits<int>::max();

std::atomic<int> most{kAll};              // of every call
std::atomic<bool> affinity_known{false};  // most says how many CPUs there are, whatever the system says
// The most CPUs that this thread was seen to have. It may be bound to a part of them since, and the threads that help
// it are not: they have what it had when they began.
constinit thread_local int allowed = 0;

int cpus_of_this_thread() {
#ifdef __linux__
  for (int cpus = 1024; cpus <= 1 << 20; cpus *= 4) {  // the system may know of more than a cpu_set_t has room for
    cpu_set_t* set = CPU_ALLOC(cpus);
    if (!set) break;
    const size_t bytes = CPU_ALLOC_SIZE(cpus);
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
#endif
  return kAll;
}

// GNU's OpenMP keeps the threads that a thread's first call starts for its later ones. A child of fork has none of
// them, yet there the thread that forked would wait for them at its next call, for ever; so it takes no others. One
// that it starts may: its helpers are its own. The other OpenMPs begin anew in a child.
enum class Helpers : char { kNone, kKept, kLost };
constinit thread_local Helpers helpers = Helpers::kNone;
#ifdef __linux__
const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  if (helpers == Helpers::kKept && !__kmpc_fork_call) helpers = Helpers::kLost;
});
#endif

int64_t cpu_threads() { return usable_threads(); }

void cpu_limit_threads(int64_t limit, bool is_known) {
  check(limit >= 1, "limit: expected at least 1, got ", limit);
  most = static_cast<int>(std::min<int64_t>(limit, kAll));
  affinity_known = is_known;
}

}  // namespace

void run_on_cpus_of_their_own(int64_t workers, void (*body)(int64_t, int64_t, void*), void* context) {
  if (helpers == Helpers::kLost) return body(0, workers, context);
  helpers = Helpers::kKept;
  OwnCpus call(workers, body, context);
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, workers, 1, &OwnCpus::run, &call));
  // Its helpers have lost theirs (a container that shrinks, taskset -a): what it has itself now is to be asked.
  if (const int cpus = call.too_few_cpus()) allowed = std::min(allowed, cpus);
}

int usable_threads() {
  const int wanted =
      std::min(static_cast<int>(torch::stable::get_num_threads()), most.load(std::memory_order_relaxed));
  if (wanted > 1 && helpers == Helpers::kLost) return 1;
  if (wanted <= 1 || affinity_known.load(std::memory_order_relaxed)) return wanted;
  // Asked only where more are wanted than were seen: a thread that is let onto more of them is to use them.
  if (wanted > allowed) allowed = std::max(allowed, cpus_of_this_thread());
  return std::min(wanted, allowed);
}

}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_threads", TORCH_BOX(&fastrnn::cpu_threads));
  m.impl("cpu_limit_threads", TORCH_BOX(&fastrnn::cpu_limit_threads));
}
