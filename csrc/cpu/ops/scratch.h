// The scratch memory of a call: packed weights, states, a chunk of gates.
//
// On Linux it is mapped in huge pages (where the system grants them on request): packed weights are read
// once a step, and with 4 KB pages those of H = 1024 ask for more entries than the TLB has (5% of such a
// forward pass). Mapping and clearing pages costs about 0.1 ms a MB, so what was mapped is kept for later calls
// (spares.h), as far as it goes: a call whose memory is larger than all that is kept maps its own.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>

#include "cpu/ops/huge_pages.h"
#ifdef __linux__
#include "cpu/ops/spares.h"
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace fastrnn {

// What is kept in a piece of memory at all, and where it begins to be.
#ifdef __linux__
constexpr size_t kKeptBytes = Spares::kMost, kMappedBytes = 256 << 10;
#else
constexpr size_t kKeptBytes = 0, kMappedBytes = 256 << 10;
#endif

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
    if (mapping_) {
      put_back(mapping_);
      return;
    }
#endif
    ::operator delete(base_, std::align_val_t{kAlignment});
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  char* data() const { return base_; }  // aligned to a cache line, uninitialised

#ifdef __linux__
  // Memory that outlives the call, of what is kept where there is some; put_back() takes it again, from any thread.
  static Mapping lend(size_t bytes) {
    const Mapping kept = spares().take(bytes);
    return kept ? kept : fresh(bytes);
  }
  static void put_back(Mapping mapping) {
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(mapping.begin(), mapping.bytes());  // of the gaps that were put in it (team.h)
#endif
    spares().put(mapping);
  }
#endif

  // Gives what is kept for later calls back to the system; how many bytes that was.
  static size_t release() {
#ifdef __linux__
    return spares().release();
#else
    return 0;
#endif
  }

 private:
  static constexpr size_t kAlignment = 64;
#ifdef __linux__
  static constexpr size_t kMapped = kMappedBytes;  // below this malloc has the memory at hand

  void map(size_t bytes) {
    mapping_ = lend(bytes);
    base_ = mapping_.begin();
  }

  // A whole number of huge pages that begins at one: a larger mapping, its ends cut off.
  static Mapping fresh(size_t bytes) {
    if (bytes > Mapping::kLargest) throw std::bad_alloc();
    const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* const raw = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    const uintptr_t address = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
    if (first > address) munmap(raw, first - address);
    if (address + kHugePage > first) munmap(reinterpret_cast<void*>(first + size), address + kHugePage - first);
    wish_for_huge_pages(reinterpret_cast<void*>(first), size,
                        size > Spares::kMost ? Lasting::kCall : Lasting::kCalls);
    return {reinterpret_cast<void*>(first), size};
  }

  static Spares& spares() {
    static Spares spares;
    return spares;
  }

  Mapping mapping_;
#endif
  char* base_ = nullptr;
};

}  // namespace fastrnn
