// Mappings of memory that wait for their next user. Taken and put back without a lock: threads that call layers at
// the same time never wait here, and a process that forks in between leaves none locked.
//
// A mapping is a whole number of huge pages that begins at one, so its size fits into the low bits of its address,
// and the two change hands in one step.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include <sys/mman.h>

#include "cpu/ops/huge_pages.h"

namespace fastrnn {

class Mapping {
 public:
  Mapping() = default;
  Mapping(void* begin, size_t bytes) : word_(reinterpret_cast<uintptr_t>(begin) | bytes / kHugePage) {}
  explicit Mapping(uintptr_t word) : word_(word) {}

  // Of a mapping that fits into a word; the others are unmapped by whoever made them.
  static constexpr size_t kLargest = (kHugePage - 1) * kHugePage;

  explicit operator bool() const { return word_; }
  uintptr_t word() const { return word_; }
  char* begin() const { return reinterpret_cast<char*>(word_ & ~static_cast<uintptr_t>(kHugePage - 1)); }
  size_t bytes() const { return (word_ & (kHugePage - 1)) * kHugePage; }
  void unmap() const { munmap(begin(), bytes()); }

 private:
  uintptr_t word_ = 0;
};

class Spares {
 public:
  static constexpr int kSlots = 8;
  static constexpr size_t kMost = 64 << 20;  // in all of them together

  // The smallest of them with room for so many bytes; none where there is none, and then all stay where they are.
  Mapping take(size_t bytes) {
    for (int tries = 0; tries < kSlots; ++tries) {
      const int at = smallest(bytes);
      if (at < 0) return Mapping();
      const Mapping found(slots_[at].load(std::memory_order_relaxed));
      if (found.bytes() >= bytes && remove(at, found)) return found;  // else others were faster
    }
    return Mapping();
  }

  // Keeps it if there is room, in place of smaller ones if there is not: a large one serves small requests too.
  void put(Mapping own) {
    const auto add = [&] { return kept_.fetch_add(own.bytes(), std::memory_order_relaxed) + own.bytes(); };
    if (own.bytes() > kMost) return own.unmap();
    for (size_t kept = add();; kept = kept_.load(std::memory_order_relaxed)) {
      if (kept <= kMost && insert(own)) return;
      const int at = smallest(0);
      const Mapping other(at < 0 ? 0 : slots_[at].load(std::memory_order_relaxed));
      if (!other || other.bytes() >= own.bytes()) break;
      if (remove(at, other)) other.unmap();
    }
    kept_.fetch_sub(own.bytes(), std::memory_order_relaxed);
    own.unmap();
  }

  // Gives all of them back to the system; how many bytes.
  size_t release() {
    size_t bytes = 0;
    for (int at = 0; at < kSlots; ++at) {
      const Mapping found(slots_[at].load(std::memory_order_relaxed));
      if (!found || !remove(at, found)) continue;
      bytes += found.bytes();
      found.unmap();
    }
    return bytes;
  }

 private:
  // The slot of the smallest mapping of at least so many bytes, as far as can be seen; -1: none.
  int smallest(size_t bytes) const {
    int best = -1;
    size_t best_bytes = 0;
    for (int at = 0; at < kSlots; ++at) {
      const Mapping mapping(slots_[at].load(std::memory_order_relaxed));
      if (!mapping || mapping.bytes() < bytes || (best >= 0 && mapping.bytes() >= best_bytes)) continue;
      best = at;
      best_bytes = mapping.bytes();
    }
    return best;
  }
  bool insert(Mapping own) {
    for (std::atomic<uintptr_t>& slot : slots_) {
      uintptr_t none = 0;
      if (slot.compare_exchange_strong(none, own.word(), std::memory_order_release, std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  }
  // Whoever succeeds has it alone.
  bool remove(int at, Mapping mapping) {
    uintptr_t word = mapping.word();
    if (!slots_[at].compare_exchange_strong(word, 0, std::memory_order_acquire, std::memory_order_relaxed))
      return false;
    kept_.fetch_sub(mapping.bytes(), std::memory_order_relaxed);
    return true;
  }

  std::atomic<uintptr_t> slots_[kSlots] = {};
  std::atomic<size_t> kept_{0};  // bytes of those in the slots, and of those that are being put there
};

}  // namespace fastrnn
