// The scheduler: blocks and threads of a launch, run in an order that the seed chooses.
#pragma once
#include "emu_memory.h"
#include "emu_sync.h"

namespace emu {
inline std::string stuck() {
  std::map<std::string, int> n;
  for (auto& b : S.blocks)
    for (auto& t : b->th)
      if (t.st != DONE)
        n[fmt("block %3u rank %2d: ", b->idx.x, b->rank) + state_name[t.st] + " at " + where(t.loc) +
          (t.note[0] ? std::string(" [") + t.note + "]" : "")]++;
  std::string s = "deadlock: no fiber can run, nothing is in flight\n";
  if (S.clock) s = fmt("deadlock: nothing came of waiting for %.1f s\n", S.clock * 1e-9);
  int k = 0;
  for (auto& [w, c] : n)
    if (k++ < 12) s += fmt("    %4d threads of ", c) + w + "\n";
  if (k > 12) s += fmt("    ... and %d more groups\n", k - 12);
  return s;
}
inline void finish(Thread* t) {
  Warp* w = t->warp;
  Block* b = t->blk;
  for (int i = 0; i < 64; i++)
    if (t->stack[i] != 0xCD) throw Error(who(t) + ": fiber stack overflow");
  w->exited |= 1u << t->lane;
  w->runnable &= ~(1u << t->lane);
  if (w->arrived && (w->mask >> t->lane & 1))
    throw Error(who(t) + ": exits while its warp waits for it in " + w->kind);
  if (b->arrived) throw Error(who(t) + fmt(": exits while %d threads wait in __syncthreads", b->arrived));
  if (t->cl_arrived) throw Error(who(t) + ": exits between cluster arrive and wait");
  b->live--;
  S.live--;
  cluster_leave(b->cl);
  if (b->live == 0 && opt.strict_mbar && !S.broken)
    for (auto& [off, m] : b->mb)
      if (m.tx || m.pending != m.count)
        throw Error(
            fmt("block %u exits with mbarrier @%#x unbalanced: phase %lu, %u of %u arrivals missing, tx-count %ld",
                b->idx.x, off, (unsigned long)m.phase, m.pending, m.count, (long)m.tx));
}
inline void run_thread(Thread* t) {
  S.cur = t;
  S.switches++;
  swap_sp(&S.sched_sp, t->sp);
  S.cur = nullptr;
  if (!S.error.empty()) throw Error(S.error);
  if (t->st == DONE) finish(t);
}
inline void run_wave() {
  while (S.live) {
    while (!S.flight.empty() && S.chance(S.p_land)) land_one(false);
    if (!S.polls.empty() && S.chance(0.02)) wake_polls();
    if (S.ready.empty()) {
      if (!S.flight.empty())
        land_one(true);
      else if (!wake_polls() && !tick())
        throw Error(stuck());
      continue;
    }
    Warp* w = S.warps[S.ready.top().second];
    S.ready.pop();
    w->queued = true;  // queued: the warp may wake its own lanes without re-entering
    uint32_t order = S.below(32);
    do {
      for (uint32_t i = 0, go = w->runnable; i < 32; i++)
        if (go >> (i ^ order) & 1) run_thread(w->t[i ^ order]);
    } while (w->runnable && !S.chance(S.p_preempt));
    w->queued = false;
    enqueue(w);
  }
  if (!S.flight.empty()) throw Error("st.async still in flight when its blocks exited");
}
// One more block of the wave: its shared memory between guard pages, its warps and fibers. The dynamic
// part of shared memory ends at a guard page.
inline void add_block(const Config& c, unsigned index, uint8_t* stacks) {
  const size_t T = c.block.x;
  auto b = std::make_unique<Block>();
  b->idx = {index, 0, 0};
  b->rank = (index) % c.cluster;
  b->live = (int)T;
  if (b->rank == 0) {
    S.clusters.push_back(std::make_unique<Cluster>());
    S.clusters.back()->size = (int)T * c.cluster;
  }
  b->cl = S.clusters.back().get();
  b->cl->b.push_back(b.get());
  const size_t dynb = (c.smem + 127) / 128 * 128, dynp = page_bytes(dynb);
  b->map_n = PAGE + STATIC_MAX + PAGE + dynp + PAGE;
  b->map = map_pages(b->map_n);
  b->dyn = b->map + b->map_n - PAGE - dynb;
  memset(b->map, 0xff, b->map_n);
  guard(b->map, "before static shared memory");
  guard(b->map + PAGE + STATIC_MAX, "before dynamic shared memory");
  guard(b->map + b->map_n - PAGE, fmt("past the end of dynamic shared memory (%zu bytes)", c.smem));
  b->th.resize(T);
  b->w.resize((T + 31) / 32);
  for (size_t k = 0; k < T; k++) {
    Thread& t = b->th[k];
    Warp& w = b->w[k / 32];
    t.blk = b.get();
    t.warp = &w;
    t.tid = {(unsigned)k, 0, 0};
    t.lin = (int)k;
    t.lane = k % 32;
    t.stack = stacks + k * STACK;
    w.b = b.get();
    w.all |= 1u << t.lane;
    w.t[t.lane] = &t;
    make_fiber(t);
  }
  S.blocks.push_back(std::move(b));
}
inline void launch(const Config& c, std::function<void()> body) {
  static uint8_t* stacks = nullptr;
  static size_t nstacks = 0;
  if (c.grid.y * c.grid.z * c.block.y * c.block.z != 1) throw Error("only 1-D grids and blocks");
  if (c.block.x > 1024 || c.grid.x % c.cluster) throw Error("bad launch shape");
  S = Sim();
  S.cfg = c;
  S.body = std::move(body);
  S.rs = opt.seed * 0x9E3779B97F4A7C15ULL + 0x1234567;
  for (int i = 0; i < 8; i++) S.rnd();
  // Three axes of schedules by seed: how often priorities change, how late async stores land, how often
  // a warp is preempted. 36 combinations: that many seeds see each once.
  static const double redraw[] = {1, .2, .01}, landp[] = {1, .9, .3, 0}, pre[] = {0, .05, .5};
  S.p_redraw = redraw[opt.seed % 3];
  S.p_land = landp[opt.seed / 3 % 4];
  S.p_preempt = pre[opt.seed / 12 % 3];
  unsigned wave = opt.resident < 0 ? -opt.resident
                  : c.cooperative  ? c.grid.x
                  : c.cluster > 1  ? c.cluster * (1 + opt.seed % 2)
                  : opt.resident   ? opt.resident
                                   : 1 + opt.seed % 4;
  for (unsigned first = 0; first < c.grid.x; first += wave) {
    unsigned n = std::min(wave, c.grid.x - first);
    size_t T = c.block.x;
#ifdef EMU_RACE
    uint8_t* mark = race_begin(n * ((T + 31) / 32));
#endif
    S.blocks.clear();
    S.clusters.clear();
    S.warps.clear();
    S.polls.clear();
    S.speed.clear();
    S.ready = {};
    if (nstacks < n * T) {
      if (stacks) munmap(stacks, nstacks * STACK);
      nstacks = n * T;
      stacks = map_pages(nstacks * STACK, false);
    }
    for (unsigned i = 0; i < n; i++) {
      add_block(c, first + i, stacks + i * T * STACK);
    }
    S.live = (long)(n * T);
    for (auto& b : S.blocks)
      for (auto& w : b->w) {
        w.id = (int)S.warps.size();
        w.runnable = w.all;
        w.prio = S.uni();
        S.warps.push_back(&w);
      }
    for (auto* w : S.warps) enqueue(w);
    std::string err;
    try {
      CatchCrash().run(run_wave);
    } catch (const std::exception& e) {
      err = e.what();
    }
    S.cur = nullptr;
    for (auto& b : S.blocks) {
      if (err.empty())
        for (uint8_t* p = b->dyn + c.smem; p < b->map + b->map_n - PAGE; p++)
          if (*p != 0xff) err = fmt("block %u wrote past its dynamic shared memory", b->idx.x);
      for (uint8_t* g : {b->map, b->map + PAGE + STATIC_MAX, b->map + b->map_n - PAGE}) guards().erase((uintptr_t)g);
#ifndef EMU_RACE
      munmap(b->map, b->map_n);
#endif
    }
#ifdef EMU_RACE
    race_end(mark);
#endif
    if (!err.empty()) throw Error(err);
  }
}
template <class... P, class... A>
void launch(const Config& c, void (*k)(P...), A... a) {
  launch(c, std::function<void()>([=] { k((P)a...); }));
}
}  // namespace emu
