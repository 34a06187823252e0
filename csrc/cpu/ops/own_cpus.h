// Threads of one call, each on a CPU of its own. Without torch: tests/harness has it too, with a system of its own
// (own_cpus.cpp) and under ThreadSanitizer.
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
#pragma once
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>

#include "cpu/team.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace fastrnn {

// The body of a call's threads: hand run and this object to what starts them.
class OwnCpus {
 public:
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  OwnCpus(int64_t workers, Body body, void* context) : workers_(workers), body_(body), context_(context) {
    calls_.fetch_add(1, std::memory_order_relaxed);
    take_cpu();
  }
  ~OwnCpus() { calls_.fetch_sub(1, std::memory_order_relaxed); }
  OwnCpus(const OwnCpus&) = delete;

  static void run(int64_t begin, int64_t end, void* self) {
    OwnCpus& call = *static_cast<OwnCpus*>(self);
    const int64_t own = end - begin;
    if (calls_.load(std::memory_order_relaxed) == 1) {
      std::this_thread::get_id() == call.caller_ ? call.let_the_others_in(own) : call.settle();
    }
    call.entered_.fetch_add(own, std::memory_order_relaxed);
    call.body_(begin, end, call.context_);
  }
  // How many CPUs a thread may use that found none for itself, since there are fewer than threads; else 0.
  int too_few_cpus() const { return too_few_cpus_.load(std::memory_order_relaxed); }

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
    if (sched_getaffinity(0, sizeof(own), &own) != 0) return;
    if (CPU_COUNT(&own) < workers_) return too_few_cpus_.store(CPU_COUNT(&own), std::memory_order_relaxed);
    others = own;
    for (int cpu = 0; cpu < kCpus; ++cpu) {
      if (taken_[cpu / kBits].load(std::memory_order_relaxed) >> cpu % kBits & 1) CPU_CLR(cpu, &others);
    }
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others) != 0) return;
    may_use(own);
    take_cpu();
  }
  // As before. A thread that nobody has bound may use whatever its control group has, and what that is given later;
  // once bound to what that was, it would keep to it. Bound to every CPU there can be, it is as free as it was: so,
  // where that comes to the same. A group that meanwhile lost them all could not be given `own` back.
  static void may_use(const cpu_set_t& own) {
    cpu_set_t all, found;
    std::memset(&all, 0xff, sizeof(all));
    if (sched_setaffinity(0, sizeof(all), &all) == 0 && sched_getaffinity(0, sizeof(found), &found) == 0 &&
        CPU_EQUAL(&found, &own)) {
      return;
    }
    sched_setaffinity(0, sizeof(own), &own);
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
  void let_the_others_in(int64_t) { static_cast<void>(workers_); }  // or clang has a member that nobody reads
#endif

  static inline std::atomic<int> calls_{0};  // of the process, on several threads each
#ifdef __linux__
  // A child has none of the threads that made them.
  static inline const int at_fork_ = pthread_atfork(nullptr, nullptr, [] { calls_ = 0; });
#endif

  const int64_t workers_;
  const Body body_;
  void* const context_;
  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<int64_t> entered_{0};
  std::atomic<int> too_few_cpus_{0};
};

}  // namespace fastrnn
