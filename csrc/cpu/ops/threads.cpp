// The CPUs of this process, for threads.h. A limit that files and settings make (cgroups, FASTRNN_CPUS) is read by
// fastrnn/_ops/threads.py when the package loads; where there is no Python there is none.
#include "cpu/ops/threads.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>

#include "cpu/ops/tensors.h"
#include "ops/check.h"

#ifdef __linux__
#include <sched.h>
#endif

namespace fastrnn {
namespace {

constexpr int kAll = std::numeric_limits<int>::max();

std::atomic<int> most{kAll};              // of every call
std::atomic<bool> affinity_known{false};  // most says how many CPUs there are, whatever the system says
std::atomic<int> allowed{0};              // the most CPUs that the calling threads were seen to have

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

int64_t cpu_threads() { return usable_threads(); }

void cpu_limit_threads(int64_t limit, bool is_known) {
  check(limit >= 1, "limit: expected at least 1, got ", limit);
  most = static_cast<int>(std::min<int64_t>(limit, kAll));
  affinity_known = is_known;
}

// Threads of one call, and the CPUs that they are on.
//
// A thread that slept while there was nothing to do is woken for a call on whatever CPU the system takes. In a
// virtual machine that is often the one of the thread that wakes it, although another is idle, since an idle virtual
// CPU does not look available; and there it stays as long as threads of a call come and go in turns. They wait for
// each other on one CPU then, each until the system takes it away: on two virtual CPUs (Linux 6.18) a call of 0.25 ms
// took 4 to 8 after every rest of 50 ms. So whoever finds its CPU taken by another thread of the call moves: it is
// bound to the others for a moment, which is what makes the system move it at once.
//
// Only where this is the one call of the process: threads of several calls share CPUs, and each that moved would be
// on another's.
std::atomic<int> calls{0};

class Region {
 public:
  using Body = void (*)(int64_t, int64_t, void*);
  Region(int64_t workers, Body body, void* context) : workers_(workers), body_(body), context_(context) {
    calls.fetch_add(1, std::memory_order_relaxed);
    take_cpu();
  }
  ~Region() { calls.fetch_sub(1, std::memory_order_relaxed); }
  Region(const Region&) = delete;

  static void run(int64_t begin, int64_t end, void* self) {
    Region& region = *static_cast<Region*>(self);
    const int64_t own = end - begin;
    if (calls.load(std::memory_order_relaxed) == 1) {
      std::this_thread::get_id() == region.caller_ ? region.let_the_others_in(own) : region.settle();
    }
    region.entered_.fetch_add(own, std::memory_order_relaxed);
    region.body_(begin, end, region.context_);
  }

 private:
#ifdef __linux__
  static constexpr int kCpus = CPU_SETSIZE, kBits = 64;

  // Whether this thread's CPU was free of the call's others, or there is no telling.
  bool take_cpu() {
    const int cpu = sched_getcpu();
    if (cpu < 0 || cpu >= kCpus) return true;
    const uint64_t bit = uint64_t{1} << cpu % kBits;
    return !(taken_[cpu / kBits].fetch_or(bit, std::memory_order_relaxed) & bit);
  }
  // To a CPU that no thread of this call has, if there is one for each.
  void settle() {
    if (take_cpu()) return;
    cpu_set_t own, others;
    if (sched_getaffinity(0, sizeof(own), &own) != 0 || CPU_COUNT(&own) < workers_) return;
    others = own;
    for (int cpu = 0; cpu < kCpus; ++cpu) {
      if (taken_[cpu / kBits].load(std::memory_order_relaxed) >> cpu % kBits & 1) CPU_CLR(cpu, &others);
    }
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others) != 0) return;
    sched_setaffinity(0, sizeof(own), &own);
    take_cpu();
  }
  // The CPU, for a moment, to whoever of them waits for it, and some time to move. Threads that wait with their CPU
  // in hand begin within a microsecond. Not more often, as a thread of another program may be what takes it; and not
  // for longer. But a caller that went to sleep at its first meeting would be woken on the CPU of whom it waits for.
  void let_the_others_in(int64_t own) {
    constexpr int kSoon = 256, kTimes = 3, kMoved = 4096;
    for (int i = 0; i < kSoon + kTimes + kMoved; ++i) {
      if (entered_.load(std::memory_order_relaxed) >= workers_ - own) return;
      if (i >= kSoon && i < kSoon + kTimes) sched_yield();
      pause_a_moment();
    }
  }

  std::atomic<uint64_t> taken_[kCpus / kBits] = {};
#else
  void take_cpu() {}
  void settle() {}
  void let_the_others_in(int64_t) {}
#endif

  const int64_t workers_;
  const Body body_;
  void* const context_;
  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<int64_t> entered_{0};
};

}  // namespace

void run_on_cpus_of_their_own(int64_t workers, void (*body)(int64_t, int64_t, void*), void* context) {
  Region region(workers, body, context);
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, workers, 1, &Region::run, &region));
}

int usable_threads() {
  const int wanted =
      std::min(static_cast<int>(torch::stable::get_num_threads()), most.load(std::memory_order_relaxed));
  if (wanted <= 1 || affinity_known.load(std::memory_order_relaxed)) return wanted;
  // Asked only where more are wanted than were ever seen: the calling thread may be bound to a part of the CPUs
  // since, its helpers are not, and a process that was let onto more of them is to use them.
  if (wanted > allowed.load(std::memory_order_relaxed)) {
    const int now = cpus_of_this_thread();
    int seen = allowed.load(std::memory_order_relaxed);
    while (now > seen && !allowed.compare_exchange_weak(seen, now)) {
    }
  }
  return std::min(wanted, allowed.load(std::memory_order_relaxed));
}

}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_threads", TORCH_BOX(&fastrnn::cpu_threads));
  m.impl("cpu_limit_threads", TORCH_BOX(&fastrnn::cpu_limit_threads));
}
