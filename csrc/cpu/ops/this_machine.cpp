// The sizes of the caches are asked for when the library loads; what a system does not tell keeps plan/cpu.h's value.
// Several cores may share a cache that the system calls a core's own; a plan does not mind a larger one.
#include "cpu/ops/this_machine.h"

#include <atomic>
#include <cstdio>
#include <tuple>

#include "cpu/ops/threads.h"
#include "ops/check.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <unistd.h>
#endif

namespace fastrnn {
namespace {

struct Caches {
  int64_t l2 = 0, l3 = 0;  // 0: not known
};

Caches caches() {
  Caches found;
#if defined(__APPLE__)
  const auto ask = [](const char* name) {
    int64_t bytes = 0;
    size_t size = sizeof(bytes);
    return sysctlbyname(name, &bytes, &size, nullptr, 0) == 0 ? bytes : 0;
  };
  found.l2 = ask("hw.perflevel0.l2cachesize");
  if (found.l2 <= 0) found.l2 = ask("hw.l2cachesize");
  found.l3 = ask("hw.l3cachesize");
#elif defined(__linux__)
  for (int index = 0; index < 8; ++index) {
    const auto read = [&](const char* name, char (&line)[32]) {
      char path[96];
      std::snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
      std::FILE* const file = std::fopen(path, "r");
      if (!file) return false;
      const bool has_line = std::fgets(line, sizeof(line), file) != nullptr;
      std::fclose(file);
      return has_line;
    };
    char level[32], size[32];
    long long bytes = 0;
    char unit = 0;
    if (!read("level", level) || !read("size", size) || std::sscanf(size, "%lld%c", &bytes, &unit) < 1) continue;
    bytes <<= unit == 'K' ? 10 : unit == 'M' ? 20 : 0;
    if (level[0] == '2') found.l2 = bytes;
    if (level[0] == '3') found.l3 = bytes;
  }
#ifdef _SC_LEVEL2_CACHE_SIZE
  if (found.l2 <= 0) found.l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found.l3 <= 0) found.l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
#endif
  return found;
}

// All but what depends on the call; a test may say otherwise.
struct Known {
  std::atomic<int64_t> l2_bytes, l3_bytes;
  std::atomic<int> meeting_ns, region_ns;

  Known() {
    const CpuMachine unknown;
    const Caches found = caches();
    l2_bytes = found.l2 > 0 ? found.l2 : unknown.l2_bytes;
    // Where there is no third cache the second one is the last.
    l3_bytes = found.l3 > 0 ? found.l3 : found.l2 > 0 ? found.l2 : unknown.l3_bytes;
    meeting_ns = unknown.meeting_ns;
    region_ns = unknown.region_ns;
  }
};
Known known;

std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> cpu_machine(bool float64) {
  const CpuMachine m = this_machine(kernels_in_use(), float64 ? Dtype::kDouble : Dtype::kFloat);
  return {m.lanes, m.tile_rows, m.l2_bytes, m.l3_bytes, m.meeting_ns, m.region_ns};
}

void cpu_set_machine(int64_t l2_bytes, int64_t l3_bytes, int64_t meeting_ns, int64_t region_ns) {
  constexpr int64_t kMostNs = 1 << 30;
  check(l2_bytes >= 1, "l2_bytes: expected at least 1, got ", l2_bytes);
  check(l3_bytes >= 1, "l3_bytes: expected at least 1, got ", l3_bytes);
  check(0 <= meeting_ns && meeting_ns <= kMostNs, "meeting_ns: expected 0 to 2**30, got ", meeting_ns);
  check(0 <= region_ns && region_ns <= kMostNs, "region_ns: expected 0 to 2**30, got ", region_ns);
  known.l2_bytes = l2_bytes;
  known.l3_bytes = l3_bytes;
  known.meeting_ns = static_cast<int>(meeting_ns);
  known.region_ns = static_cast<int>(region_ns);
}

}  // namespace

CpuMachine this_machine(const KernelTable& kernels, Dtype dtype) {
  constexpr auto kAnyOrder = std::memory_order_relaxed;
  CpuMachine machine = machine_of(kernels, dtype, usable_threads());
  machine.l2_bytes = known.l2_bytes.load(kAnyOrder);
  machine.l3_bytes = known.l3_bytes.load(kAnyOrder);
  machine.meeting_ns = known.meeting_ns.load(kAnyOrder);
  machine.region_ns = known.region_ns.load(kAnyOrder);
  return machine;
}

int64_t last_cache() { return known.l3_bytes.load(std::memory_order_relaxed); }

}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_machine", TORCH_BOX(&fastrnn::cpu_machine));
  m.impl("cpu_set_machine", TORCH_BOX(&fastrnn::cpu_set_machine));
}
