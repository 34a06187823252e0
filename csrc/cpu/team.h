// How workers of one parallel region share a layer, wait for each other and share scratch memory. A layer's work is a
// grid of workers: directions x batch groups x unit groups. Batch groups never talk to each other (a batch's rows are
// independent), directions neither; the unit groups of one batch group exchange h and meet at a barrier every step.
#pragma once
#include "params/rnn.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
extern "C" long syscall(long number, ...) noexcept;
#elif defined(_WIN32)
extern "C" __declspec(dllimport) int SwitchToThread(void);
#define sched_yield SwitchToThread  // the same by another name
#else
extern "C" int sched_yield(void);
#endif

namespace fastrnn {

// Runs body(begin, end, context) over [0, workers) with all its calls at the same time on different
// threads. A call may hold several workers where fewer threads are at hand than were asked for (one
// thread, a nested region): kernels step through them together, so no barrier can dead-lock.
struct Parallel {
  void (*run)(int64_t workers, void (*body)(int64_t begin, int64_t end, void* context), void* context);
};

namespace {

// A moment's rest of a thread that looks again and again, for whoever shares its core.
inline void pause_a_moment() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long a thread waits for the others with its core in hand before it goes to sleep, in pauses of the processor.
//
// Where every thread has a core to itself, the others come within a step's few microseconds, and to be woken would
// take longer than that. Where threads share cores (more threads than cores, other programs, several callers at
// once), a thread that spins holds up the very thread it waits for, and a yield gives that only a turn among all who
// spin. So the number is learned: halved by a wait that came to nothing, and raised to four times what a wait took
// that did not. Now and then, seldom while it fails, a wait takes the most again, to see whether the cores are free.
//
// On two cores, eight threads that met every 18 us took 50 times as long as one with 4096 pauses and yields, 14 times
// with as many and sleep, 5 times with 1000, twice with 200, and 1.6-1.9 times with a learned number.
class Patience {
 public:
  static constexpr int kMost = 16384, kLeast = 64;

  // Pauses that this wait may take.
  int pauses() {
    const int learned = load(pauses_);
    if (learned >= kMost) return learned;
    return __atomic_sub_fetch(&until_trial_, 1, __ATOMIC_RELAXED) <= 0 ? kMost : learned;
  }
  // What came of a wait: the pauses that it took of those it had.
  void succeeded(int took, int had) {
    if (had == kMost && load(pauses_) < kMost) store(trial_interval_, kOften), store(until_trial_, kOften);
    if (took > load(pauses_) / 4) store(pauses_, took < kMost / 4 ? 4 * took : kMost);
  }
  void failed(int had) {
    if (had == kMost && load(pauses_) < kMost) {
      const int interval = load(trial_interval_);
      store(trial_interval_, interval < kSeldom ? 2 * interval : kSeldom);
      store(until_trial_, load(trial_interval_));
    }
    const int learned = load(pauses_);
    if (learned > kLeast) store(pauses_, learned / 2);
  }

 private:
  static constexpr int kOften = 32, kSeldom = 1024;
  // All threads learn together, and what one overwrites of another's does no harm.
  static int load(const int& value) { return __atomic_load_n(&value, __ATOMIC_RELAXED); }
  static void store(int& value, int to) { __atomic_store_n(&value, to, __ATOMIC_RELAXED); }

  alignas(64) int pauses_ = kMost;
  int trial_interval_ = kOften, until_trial_ = kOften;
};

// The process's, one an instruction set.
inline Patience& patience() {
  static Patience patience;
  return patience;
}

// Counts arrivals; arrive and wait are apart so that a thread can arrive for all of its workers before it waits for
// the others. `target` is the number of arrivals, since reset(), that makes a meeting complete; nobody arrives for
// the next one before that.
class Barrier {
 public:
  void reset() { arrivals_ = 0, sleepers_ = 0; }

  // The order of the counters is what keeps a thread from sleeping for ever: whoever sleeps has announced it before
  // it looked at the arrivals for the last time, and the last to arrive does so before it looks for sleepers.
  void arrive(int64_t target) {
    const int64_t now = __atomic_add_fetch(&arrivals_, 1, __ATOMIC_SEQ_CST);
    if (now == target && __atomic_load_n(&sleepers_, __ATOMIC_SEQ_CST)) wake();
  }

  void wait(int64_t target) {
    if (__atomic_load_n(&arrivals_, __ATOMIC_ACQUIRE) >= target) return;
    Patience& learned = patience();
    const int pauses = learned.pauses();
    for (int i = 1; i <= pauses; ++i) {
      pause_a_moment();
      if (__atomic_load_n(&arrivals_, __ATOMIC_ACQUIRE) >= target) return learned.succeeded(i, pauses);
    }
    learned.failed(pauses);
    __atomic_fetch_add(&sleepers_, 1, __ATOMIC_SEQ_CST);
    for (;;) {
      const int64_t seen = __atomic_load_n(&arrivals_, __ATOMIC_SEQ_CST);
      if (seen >= target) break;
      sleep(seen);
    }
    __atomic_fetch_sub(&sleepers_, 1, __ATOMIC_RELAXED);
  }

 private:
#ifdef __linux__
  // A futex is 32 bits wide: the lower half, which between two looks at it does not come round.
  int32_t* word() { return reinterpret_cast<int32_t*>(&arrivals_) + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__); }
  // Returns at once if there have been arrivals since, and now and then for no reason.
  void sleep(int64_t seen) {
    syscall(SYS_futex, word(), FUTEX_WAIT_PRIVATE, static_cast<int32_t>(seen), nullptr, nullptr, 0);
  }
  void wake() { syscall(SYS_futex, word(), FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0); }
#else
  void sleep(int64_t) { sched_yield(); }
  void wake() {}
#endif

  alignas(64) int64_t arrivals_;
  int32_t sleepers_;
};

// Cuts one block of scratch memory into 64-byte aligned pieces. With base null it only measures.
//
// Under AddressSanitizer a gap behind every piece may not be touched: in one block it would not see a piece that is
// too small for what is written there.
struct Arena {
  char* base = nullptr;
  size_t used = 0;

  template <class U>
  U* take(int64_t count) {
    U* piece = base ? reinterpret_cast<U*>(base + used) : nullptr;
    used += (static_cast<size_t>(count) * sizeof(U) + 63) / 64 * 64;
#ifdef __SANITIZE_ADDRESS__
    constexpr size_t kGap = 256;
    if (base) {
      ASAN_UNPOISON_MEMORY_REGION(piece, base + used - reinterpret_cast<char*>(piece));
      ASAN_POISON_MEMORY_REGION(base + used, kGap);
    }
    used += kGap;
#endif
    return piece;
  }
};

// The grid of workers and the rows that a batch group owns: p, p + groups, p + 2 groups, … so that
// every group holds an equal share of the long rows of a packed sequence.
struct Grid {
  int directions, batch_groups, unit_groups;

  int workers() const { return directions * batch_groups * unit_groups; }
  int workers_a_direction() const { return batch_groups * unit_groups; }
  int direction(int rank) const { return rank / workers_a_direction(); }
  int batch_group(int rank) const { return rank / unit_groups % batch_groups; }
  int unit_group(int rank) const { return rank % unit_groups; }
  int group(int rank) const { return rank / unit_groups; }  // index over directions and batch groups
  // Rows of group p among the first n of a batch.
  int64_t rows(int64_t n, int p) const { return n > p ? (n - p + batch_groups - 1) / batch_groups : 0; }
};

}  // namespace
}  // namespace fastrnn
