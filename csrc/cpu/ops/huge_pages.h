// Huge pages, on Linux: 2 MB that one entry of the TLB is enough for, and one fault maps and clears.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#ifdef __linux__
#include <glob.h>
#include <sys/mman.h>
#endif

namespace fastrnn {

constexpr size_t kHugePage = 2 << 20;

#ifdef __linux__
// Whether one of these files, the features of virtio-balloon devices as sysfs has them, one digit a feature, says
// that free pages are reported to the host (feature 5).
inline bool says_free_pages_are_reported(const char* pattern) {
  constexpr size_t kReporting = 5;
  bool any = false;
  glob_t found;
  if (glob(pattern, GLOB_NOSORT, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; ++i) {
      char features[kReporting + 1];
      FILE* const file = std::fopen(found.gl_pathv[i], "r");
      if (!file) continue;
      any |= std::fread(features, 1, sizeof(features), file) == sizeof(features) && features[kReporting] == '1';
      std::fclose(file);
    }
  }
  globfree(&found);
  return any;
}

// Whether this is a virtual machine whose host takes back what is free in it, a huge page or more at a time. The next
// who is given such a page waits while the host maps and clears it, 4 KB after 4 KB: 2 to 5 ms on one with a Zen 4,
// .3 where the page was still there, and 512 small pages, which were never reported, 1.
inline bool host_takes_free_pages() {
  static const bool takes = says_free_pages_are_reported("/sys/bus/virtio/drivers/virtio_balloon/virtio*/features");
  return takes;
}
#endif

// Whether what a call asks for now is likely to be what one before it has given back so lately that the host has not
// taken it yet, which Linux leaves it two seconds for. Pieces that are asked for at once are alike.
class GivenBackLately {
 public:
  bool ask(int64_t now_ns) {
    constexpr int64_t kAtOnceNs = 20'000'000, kLatelyNs = 1'000'000'000;
    const int64_t gap = now_ns - last_ns_.exchange(now_ns, std::memory_order_relaxed);
    if (gap > kAtOnceNs) lately_.store(gap < kLatelyNs, std::memory_order_relaxed);
    return lately_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<int64_t> last_ns_{INT64_MIN / 2};
  std::atomic<bool> lately_{false};
};

// How long memory is there: until its call or what that returns is done with, or for many calls.
enum class Lasting { kCall, kCalls };

// Asks the system to back the huge pages that lie in this memory as such when they are first touched. A wish:
// nothing depends on it.
inline void wish_for_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes,
                                [[maybe_unused]] Lasting lasting) {
#ifdef __linux__
  if (lasting == Lasting::kCall && host_takes_free_pages()) {
    static GivenBackLately lately;
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    if (!lately.ask(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count())) return;
  }
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + bytes) / kHugePage * kHugePage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace fastrnn
