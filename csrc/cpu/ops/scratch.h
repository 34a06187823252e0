// The scratch memory of a call: packed weights, states, a chunk of gates.
//
// On Linux it is mapped in huge pages (where the system grants them on request): packed weights are read
// once a step, and with 4 KB pages those of H = 1024 ask for more entries than the TLB has (5% of such a
// forward pass). Mapping and clearing pages costs about 0.1 ms a MB, so one mapping of at most kKept bytes
// is kept for the next call; calls that run at the same time map their own.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace fastrnn {

constexpr size_t kHugePage = 2 << 20;

// Asks the system to back the huge pages that lie in this memory as such when they are first touched. A wish:
// nothing depends on it.
inline void wish_for_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + bytes) / kHugePage * kHugePage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

class Scratch {
 public:
  explicit Scratch(size_t bytes) {
#ifdef __linux__
    if (bytes >= kMapped) {
      map(bytes);
      return;
    }
#endif
    base_ = static_cast<char*>(::operator new(bytes, std::align_val_t{kAlignment}));
  }
  ~Scratch() {
#ifdef __linux__
    if (mapped_) {
      release();
      return;
    }
#endif
    ::operator delete(base_, std::align_val_t{kAlignment});
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  char* data() const { return base_; }  // aligned to a cache line, uninitialised

 private:
  static constexpr size_t kAlignment = 64;
#ifdef __linux__
  static constexpr size_t kMapped = 256 << 10;  // below this malloc has the memory at hand
  static constexpr size_t kKept = 32 << 20;

  void map(size_t bytes) {
    char* const kept = spare().exchange(nullptr, std::memory_order_acquire);
    if (kept && size_of_mapping(kept) >= bytes + kAlignment) {
      mapping_ = kept;
    } else {
      if (kept) munmap(kept, size_of_mapping(kept));
      mapping_ = fresh(bytes + kAlignment);
    }
    mapped_ = true;
    base_ = mapping_ + kAlignment;  // the first line holds the mapping's size
  }

  void release() {
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(mapping_, size_of_mapping(mapping_));  // of the gaps that were put in it (team.h)
#endif
    char* none = nullptr;
    if (size_of_mapping(mapping_) <= kKept &&
        spare().compare_exchange_strong(none, mapping_, std::memory_order_release, std::memory_order_relaxed)) {
      return;
    }
    munmap(mapping_, size_of_mapping(mapping_));
  }

  // A whole number of huge pages that begins at one: a larger mapping, its ends cut off.
  static char* fresh(size_t bytes) {
    const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* const raw = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    const uintptr_t address = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
    if (first > address) munmap(raw, first - address);
    if (address + kHugePage > first) munmap(reinterpret_cast<void*>(first + size), address + kHugePage - first);
    char* const mapping = reinterpret_cast<char*>(first);
    wish_for_huge_pages(mapping, size);
    *reinterpret_cast<size_t*>(mapping) = size;
    return mapping;
  }

  static size_t size_of_mapping(const char* mapping) { return *reinterpret_cast<const size_t*>(mapping); }
  static std::atomic<char*>& spare() {
    static std::atomic<char*> mapping{nullptr};
    return mapping;
  }

  char* mapping_ = nullptr;
  bool mapped_ = false;
#endif
  char* base_ = nullptr;
};

}  // namespace fastrnn
