// State of the emulated machine, its fibers, and how they wait and wake.
#pragma once
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <source_location>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>
#if !defined(__x86_64__) || defined(EMU_UCONTEXT)
#define EMU_UC
#include <ucontext.h>
#endif
#include "emu_types.h"

namespace emu {
#ifdef EMU_RACE
struct Clock {
  std::vector<uint32_t> v;
};
using Snap = std::shared_ptr<const std::vector<uint32_t>>;
#define EMU_NOSAN __attribute__((no_sanitize_thread, noinline))
#else
struct Clock {};
struct Snap {};
#define EMU_NOSAN
#endif
using Loc = std::source_location;
#define EMU_LOC emu::Loc loc = emu::Loc::current()
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---------------------------------------------------------------- state
constexpr size_t LINE = 128;  // of a cache
struct Block;
struct Warp;
enum State { RUN, WARP, BLOCK, CLUSTER, GRID, MBAR, POLL, NAP, DONE };
inline const char* state_name[] = {"runnable",        "warp collective", "__syncthreads",
                                   "cluster barrier", "grid sync",       "mbarrier",
                                   "polling a value", "napping",         "done"};

struct Thread {
  void* sp = nullptr;
  uint8_t* stack = nullptr;
  Block* blk = nullptr;
  Warp* warp = nullptr;
  uint3 tid{};
  int lane = 0, lin = 0;  // lin: index in the block
  State st = RUN;
  Loc loc;                  // where it waits (or last waited)
  char note[48] = "";       // what it waits for
  bool cl_arrived = false;  // has arrived at the cluster barrier and not waited yet
  uint64_t cl_phase = 0;
  const volatile void* poll_p = nullptr;
  uint64_t poll_v = 0;
  uint64_t (*poll_at)(const volatile void*) = nullptr;
  bool timed = false;  // it goes by the clock: a tick wakes it
  struct Copy {
    void* d;
    const void* s;
    int n;
    int group;
    bool there;                          // it landed at once
    std::shared_ptr<const uint4> value;  // what was read at once, null: it is read when the copy lands
  };
  std::vector<Copy> cp;  // cp.async not yet waited for
  int cp_group = 0;
};
struct Warp {
  Block* b = nullptr;
  int id = 0;  // index in the wave
  uint32_t all = 0, exited = 0, runnable = 0;
  uint32_t met = 1;  // grows when its lanes have met so that memory is ordered among them
  double prio = 0;
  bool queued = false;
  Thread* t[32] = {};
  uint32_t arrived = 0, mask = 0;  // the collective now gathering
  const char* kind = nullptr;
  void* arg[32] = {};
};
struct MBar {
  Clock hb, hb_done;
  uint32_t count = 0, pending = 0;
  int64_t tx = 0;
  uint64_t phase = 0;
  std::vector<Thread*> wait;
  std::vector<uint64_t> seen;
};
struct Cluster {
  Clock hb, hb_done;
  std::vector<Block*> b;
  int arrived = 0, size = 0;
  uint64_t phase = 0;
  std::vector<Thread*> wait;
};
struct Block {
  Clock hb, hb_done;
  uint3 idx{};
  int rank = 0, live = 0, arrived = 0;
  Cluster* cl = nullptr;
  uint8_t *map = nullptr, *dyn = nullptr;
  size_t map_n = 0;
  std::vector<Thread> th;
  std::vector<Warp> w;
  std::map<uint32_t, MBar> mb;  // by shared offset
  // What its loads of other blocks' writes have seen since the last acquire: emu_sync.h's weak_load.
  std::unordered_map<uintptr_t, std::array<uint8_t, LINE>> seen;
  bool acquired = false;
};
struct Async {
  Block *src, *dst;
  uint32_t off, val[4];
  int n;  // bytes
  uint32_t bar;
  Loc loc;
  Snap from;
  int warp;
  bool written = false;  // the data is there, their bytes are not counted yet
};

struct Config {
  dim3 grid, block;
  size_t smem = 0;
  int cluster = 1;
  bool cooperative = false;
};
struct Options {  // set before a launch
  uint64_t seed = 1;
  // Blocks co-resident in a plain launch (0: 1 to 4 by seed), so that a kernel that needs more deadlocks.
  // Negative: as many in any launch, a cooperative one too, which no device would do.
  int resident = 0;
  int sms = 132;          // with room for one block each, for who asks the device
  int max_cluster = 16;   // blocks of the largest cluster that there is room for
  int fail_launches = 0;  // so many launches to come, and queries of clusters' room, fail
  int fail_queries = 0;
  bool no_image = false;    // kernels were compiled for other devices
  int fault = 0;            // number of the planted fault that is switched on, see build.py
  bool strict_mbar = true;  // a wait must see exactly the next phase; no tx or half-arrived phase may be left at exit
  int side = 1;             // to which approximate functions err: 1 too large, -1 too small
  long lose = -1;           // the number in a launch of the signal that gets lost: an st.async or a release
  bool stale = true;        // loads of other blocks' writes may be old until an acquire
  bool apart = true;        // every pair of blocks has its own delay of asynchronous stores
  bool race = true;         // with EMU_RACE: whether unordered accesses are errors
  bool whole_tiles = false;  // out: whether the last persistent kernel was one of whole tiles
  // Of streams (emu_streams.h): whether they are queues, whether the host waits for them behind every operator, the
  // order in which they are worked off, and so many captures and launches of graphs to come fail.
  bool deferred = false, waits = true;
  uint64_t order = 0;
  int fail_captures = 0, fail_graphs = 0;
  bool blas = true;  // whether there is a cuBLAS to find
};
inline Options opt;

struct Sim {
  Config cfg;
  std::function<void()> body;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<Warp*> warps;
  Clock hb_grid, hb_grid_done;
  std::priority_queue<std::pair<double, int>> ready;
  std::vector<Async> flight;
  std::map<std::pair<const Block*, const Block*>, double> speed;  // at which one's stores land in the other
  std::vector<Thread*> polls, naps, grid_wait;
  uint64_t clock = 0;   // ns; it goes on when nothing else can
  bool broken = false;  // a wait has given up: phases and bytes no longer need to match
  long signals = 0;
  std::map<std::string, uint32_t> statics;
  uint32_t static_used = 0;
  long live = 0, switches = 0, asyncs = 0;
  uint64_t rs = 1;
  double p_redraw = 1, p_land = 1, p_preempt = 0;
  Thread* cur = nullptr;
  void* sched_sp = nullptr;
  std::string error;
  uint64_t rnd() {
    rs ^= rs << 13;
    rs ^= rs >> 7;
    rs ^= rs << 17;
    return rs * 0x2545F4914F6CDD1DULL;
  }
  uint32_t below(uint32_t n) { return (uint32_t)(((rnd() >> 32) * n) >> 32); }
  double uni() { return (rnd() >> 11) * 0x1p-53; }
  bool chance(double p) { return p >= 1 || (p > 0 && uni() < p); }
};
inline Sim S;
constexpr uint64_t TICK = 500'000'000, TOO_LATE = 100 * 1'000'000'000ull;  // ns
constexpr size_t STACK = 64 << 10, PAGE = 4096, STATIC_MAX = 64 << 10, GUARD = 1 << 20;
// Shared "addresses": static at [4096, 4096+64K), dynamic from 1<<20; bits 24 and up: rank + 1.
constexpr uint32_t DYN_OFF = 1 << 20;

// ---------------------------------------------------------------- messages
inline std::string fmt(const char* f, ...) {
  char b[600];
  va_list a;
  va_start(a, f);
  vsnprintf(b, sizeof b, f, a);
  va_end(a);
  return b;
}
inline std::string where(const Loc& l) {
  const char* f = strrchr(l.file_name(), '/');
  return fmt("%s:%u", f ? f + 1 : l.file_name(), (unsigned)l.line());
}
inline std::string who(const Thread* t) {
  return t ? fmt("block %u (rank %d) thread %d", t->blk->idx.x, t->blk->rank, t->lin) : std::string("scheduler");
}
[[noreturn]] inline void fail(const std::string& m, const Loc* l = nullptr) {
  throw Error(who(S.cur) + (l ? " at " + where(*l) : "") + ": " + m);
}

// ---------------------------------------------------------------- fibers
#ifndef EMU_UC
[[gnu::naked, gnu::noinline]] inline void swap_sp(void** /*rdi: save*/, void* /*rsi: go to*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n movq %rsp,(%rdi)\n movq "
      "%rsi,%rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
#else
inline void swap_sp(void** save, void* to) {
  ucontext_t me;
  *save = &me;
  swapcontext(&me, (ucontext_t*)to);
}
#endif
inline void to_sched() {
  Thread* t = S.cur;
  swap_sp(&t->sp, S.sched_sp);
}
inline void fiber_main() {
  try {
    S.body();
    if (!S.cur->cp.empty()) fail("exits with cp.async copies not waited for");
  } catch (const std::exception& e) {
    S.error = e.what();
  }
  S.cur->st = DONE;
  to_sched();
  abort();
}
inline void make_fiber(Thread& t) {
  memset(t.stack, 0xCD, 64);  // canary at the low end
#ifndef EMU_UC
  void** sp = (void**)(t.stack + STACK - 64);
  *--sp = nullptr;  // as if fiber_main had been called
  *--sp = (void*)fiber_main;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  t.sp = sp;
#else
  auto* u = new ucontext_t;
  getcontext(u);
  u->uc_stack.ss_sp = t.stack;
  u->uc_stack.ss_size = STACK;
  u->uc_link = nullptr;
  makecontext(u, (void (*)())fiber_main, 0);
  t.sp = u;
#endif
}

#ifdef EMU_RACE
#include "emu_race.h"
#else
inline void hb_release(Clock&) {}
inline void hb_acquire(const Clock&) {}
inline Snap hb_snap() { return {}; }
inline void hb_touch(const void*, int, bool) {}
inline void touch_by_copy(const void*, int, bool) {}
#endif

// ---------------------------------------------------------------- waking and waiting
inline void enqueue(Warp* w) {
  if (w->queued || !w->runnable) return;
  if (S.chance(S.p_redraw)) w->prio = S.uni();
  w->queued = true;
  S.ready.push({w->prio, w->id});
}
inline void wake(Thread* t) {
  t->st = RUN;
  t->warp->runnable |= 1u << t->lane;
  enqueue(t->warp);
}
template <class V>
void wake_all(V& v) {
  for (Thread* t : v) wake(t);
  v.clear();
}
inline void wait_as(State st, const Loc& loc) {  // block the calling fiber; whoever satisfies it calls wake
  Thread* t = S.cur;
  t->st = st;
  t->loc = loc;
  t->warp->runnable &= ~(1u << t->lane);
  to_sched();
}
inline void yield() { to_sched(); }
inline void maybe_yield() {
  if (S.chance(S.p_preempt)) to_sched();
}
}  // namespace emu
