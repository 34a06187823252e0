// How workers of one parallel region share a layer, wait for each other and share scratch memory.
//
// A layer's work is a grid of workers: directions x batch groups x unit groups. Batch groups never
// talk to each other (rows of a batch are independent), directions neither; the unit groups of one
// batch group exchange h and meet at a barrier every step.
#pragma once
#include "params/rnn.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#ifdef __GLIBC__
extern "C" int sched_yield(void) noexcept;  // as sched.h has it, before or after this
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

// Counts arrivals; arrive and wait are apart so that a thread can arrive for all of its workers
// before it waits for the others. Spins briefly (a step is microseconds long), then yields, because
// a spinning thread on an oversubscribed machine holds up the very thread it waits for.
struct Barrier {
  alignas(64) int64_t arrivals;

  void arrive() { __atomic_fetch_add(&arrivals, 1, __ATOMIC_ACQ_REL); }
  void wait(int64_t target) const {
    for (int spins = 0; __atomic_load_n(&arrivals, __ATOMIC_ACQUIRE) < target; ++spins) {
      if (spins < 4096) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
      } else {
        sched_yield();
      }
    }
  }
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
