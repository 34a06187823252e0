// What glibc's malloc does with a tensor's memory when it is freed.
//
// It maps what is larger than a threshold, and of what it has it gives the end of the heap back to the system as soon
// as that is twice the threshold; both grow with the largest mapping that was freed, up to 32 MB. Below that a
// training step's gradients, which lie at the heap's end more often than not, go back at every step and come again a
// page at a time: an LSTM of 512 units took 2000 faults, 3.4 ms of 22, in every other process (by where its heap
// happened to end), and torch's own layers take them as well. So malloc is shown a mapping of the largest kind, once,
// at the first tensor for which it matters: the heap then keeps 64 MB of what is freed, as in every process that
// has freed a tensor of 32 MB. Whoever has set thresholds (mallopt, MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES) keeps
// them: they do not move then. Other libraries' malloc has no such rule, and nothing happens.
#pragma once
#include <cstddef>
#include <cstdlib>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace fastrnn {

// Of so many bytes, which were or are about to be asked for.
inline void keep_freed_memory([[maybe_unused]] size_t bytes) {
#ifdef __GLIBC__
  constexpr size_t kMatters = 32 << 10;  // several of them are the least threshold, 128 KB
  if (bytes < kMatters) return;
  [[maybe_unused]] static const bool shown = [] {
    constexpr size_t kLargest = (32 << 20) - (8 << 10);  // a mapping of less than 32 MB, whatever malloc adds to it
    void* volatile unused = std::malloc(kLargest);       // volatile: else the compiler leaves out both calls
    std::free(unused);
    return true;
  }();
#endif
}

// Gives what malloc keeps back to the system.
inline void release_freed_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace fastrnn
