// Warp collectives, block, cluster and grid barriers, polling, shared memory and its addresses,
// mbarriers, st.async and cp.async.
#pragma once
#include "emu_core.h"

namespace emu {
// Warp collective: the last lane of mask to arrive runs fn(args, mask) for all.
inline void collective(uint32_t mask, const char* kind, void* arg, void (*fn)(void**, uint32_t), Loc loc) {
  Thread* t = S.cur;
  Warp* w = t->warp;
  mask &= w->all;
  if (!(mask >> t->lane & 1)) fail(fmt("%s: calling lane is not in mask %08x", kind, mask), &loc);
  if (mask & w->exited) fail(fmt("%s: lanes %08x of the mask have exited", kind, mask & w->exited), &loc);
  if (w->arrived && (w->mask != mask || strcmp(w->kind, kind)))
    fail(fmt("divergent warp: %s mask %08x while lanes %08x wait in %s mask %08x", kind, mask, w->arrived, w->kind,
             w->mask),
         &loc);
  w->mask = mask;
  w->kind = kind;
  w->arrived |= 1u << t->lane;
  w->arg[t->lane] = arg;
  if (w->arrived == mask) {
    w->arrived = 0;
    if (fn) fn(w->arg, mask);
    if (mask == (w->all & ~w->exited) && !strcmp(kind, "__syncwarp")) w->met++;
    for (int i = 0; i < 32; i++)
      if ((mask >> i & 1) && i != t->lane) {
        w->t[i]->st = RUN;
        w->runnable |= 1u << i;
      }
    if (!w->queued) enqueue(w);
    maybe_yield();
  } else {
    snprintf(t->note, sizeof t->note, "%s", kind);
    wait_as(WARP, loc);
  }
}

inline void syncthreads(Loc loc) {
  Block* b = S.cur->blk;
  if (b->live != (int)b->th.size())
    fail(fmt("__syncthreads after %d threads of the block exited", (int)b->th.size() - b->live), &loc);
  hb_release(b->hb);
  if (++b->arrived == b->live) {
    b->hb_done = b->hb;
    if (b->acquired) b->seen.clear();  // what one thread has acquired the barrier passes on
    b->acquired = false;
    for (auto& w : b->w) w.met++;
    for (auto& t : b->th)
      if (t.st == BLOCK) {
        if (t.loc.line() != loc.line())
          fail(fmt("__syncthreads met by a different one at %s (%s)", where(t.loc).c_str(), who(&t).c_str()), &loc);
        wake(&t);
      }
    b->arrived = 0;
    maybe_yield();
  } else {
    S.cur->note[0] = 0;
    wait_as(BLOCK, loc);
  }
  hb_acquire(b->hb_done);
}
inline void cluster_arrive(Loc loc) {
  Thread* t = S.cur;
  Cluster* c = t->blk->cl;
  if (t->cl_arrived) fail("second cluster arrive without a wait", &loc);
  t->cl_arrived = true;
  t->cl_phase = c->phase;
  hb_release(c->hb);
  if (++c->arrived == c->size) {
    c->arrived = 0;
    c->phase++;
    c->hb_done = c->hb;
    wake_all(c->wait);
  }
}
inline void cluster_wait(Loc loc) {
  Thread* t = S.cur;
  Cluster* c = t->blk->cl;
  if (!t->cl_arrived) fail("cluster wait without an arrive", &loc);
  t->cl_arrived = false;
  while (c->phase == t->cl_phase) {
    c->wait.push_back(t);
    t->note[0] = 0;
    wait_as(CLUSTER, loc);
  }
  hb_acquire(c->hb_done);
}
inline void grid_sync(Loc loc) {
  if (!S.cfg.cooperative) fail("grid sync in a launch that is not cooperative", &loc);
  hb_release(S.hb_grid);
  if (S.grid_wait.size() + 1 == (size_t)S.cfg.grid.x * S.cfg.block.x)
    S.hb_grid_done = S.hb_grid, wake_all(S.grid_wait);
  else {
    S.grid_wait.push_back(S.cur);
    S.cur->note[0] = 0;
    wait_as(GRID, loc);
  }
  hb_acquire(S.hb_grid_done);
}
// A polling load: the same thread reading the same value twice in a row at one address sleeps until the value
// changes. A timed one also wakes at a tick of the clock. With `acquires` it is an acquire.
template <class T>
EMU_NOSAN T value_at(const volatile T* p) {
  return *p;
}
template <class Int>
EMU_NOSAN Int poll(const Int* p, Loc loc, bool timed = false, bool acquires = true) {
  Thread* t = S.cur;
  Int v = value_at(p);
  t->poll_at = [](const volatile void* p) -> uint64_t { return value_at((const volatile Int*)p); };
  t->timed = timed;
  if (t->poll_p == p && t->poll_v == v) {
    snprintf(t->note, sizeof t->note, "value at %p to leave %lu", (const void*)p, (unsigned long)v);
    S.polls.push_back(t);
    wait_as(POLL, loc);
    v = value_at(p);
  } else
    maybe_yield();
  t->poll_p = p;
  t->poll_v = v;
  if (acquires) {
    t->blk->seen.clear();
    t->blk->acquired = true;
#ifdef EMU_RACE
    hb_acquire(rc().addr[(const void*)p]);
#endif
  }
  return v;
}
// Nothing can run and nothing is in flight: time passes. Whoever goes by the clock looks at it, false where nobody
// does.
inline bool tick() {
  bool any = false;
  const auto wake_timed = [&](std::vector<Thread*>& waiting) {
    const auto timed = std::stable_partition(waiting.begin(), waiting.end(), [](Thread* t) { return !t->timed; });
    for (auto t = timed; t != waiting.end(); ++t) wake(*t), any = true;
    waiting.erase(timed, waiting.end());
  };
  wake_timed(S.polls);
  wake_timed(S.naps);
  for (auto& b : S.blocks)
    for (auto& [offset, m] : b->mb) wake_timed(m.wait);
  if (any) S.clock += TICK;
  return any && S.clock < TOO_LATE;
}
inline void nap(Loc loc) {
  S.cur->timed = true;
  S.naps.push_back(S.cur);
  wait_as(NAP, loc);
}
// A load of what another block may have written, by words: it may be as old as the block's first look at that line
// of memory since its last acquire. (A block's own writes to such memory it reads after an acquire.)
template <class T>
EMU_NOSAN T weak_load(const T* p) {
  hb_touch(p, sizeof(T), false);
  T v;
  if (opt.stale) {
    const uintptr_t a = (uintptr_t)p, line = a / LINE * LINE;
    const auto [at, fresh] = S.cur->blk->seen.try_emplace(line);
    if (fresh) memcpy(at->second.data(), (const void*)line, LINE);
    memcpy(&v, at->second.data() + (a - line), sizeof(T));
  } else
    memcpy(&v, p, sizeof(T));
  return v;
}
// Whether the next signal gets lost.
inline bool lost() { return S.signals++ == opt.lose; }
inline bool wake_polls() {
  bool any = false;
  for (size_t i = 0; i < S.polls.size();) {
    Thread* t = S.polls[i];
    if (t->poll_at(t->poll_p) != t->poll_v) {
      wake(t);
      S.polls[i] = S.polls.back();
      S.polls.pop_back();
      any = true;
    } else
      i++;
  }
  return any;
}

// ---------------------------------------------------------------- shared memory, its 32-bit addresses
inline void* dyn_smem() { return S.cur->blk->dyn; }
inline void* static_smem(const char* file, int line, const char* name, size_t n, size_t al) {
  auto [it, fresh] = S.statics.try_emplace(fmt("%s:%d:%s:%zu", file, line, name, n), 0);
  if (fresh) {
    al = std::max<size_t>(al, 16);
    it->second = (uint32_t)((S.static_used + al - 1) / al * al);
    S.static_used = it->second + n;
    if (S.static_used > 48 << 10) fail("more than 48 KiB of static shared memory");
  }
  return S.cur->blk->map + PAGE + it->second;
}
inline uint32_t to_shared(const void* p) {
  Block* b = S.cur->blk;
  auto* q = (const uint8_t*)p;
  if (q >= b->dyn && q < b->dyn + S.cfg.smem) return (uint32_t)(DYN_OFF + (q - b->dyn));
  if (q >= b->map + PAGE && q < b->map + PAGE + STATIC_MAX) return (uint32_t)(PAGE + (q - b->map - PAGE));
  fail(fmt("pointer %p is not in this block's shared memory", p));
}
inline Block* target(uint32_t a, const Loc& l) {
  uint32_t r = a >> 24;
  Block* b = S.cur ? S.cur->blk : nullptr;
  if (!r) return b;
  if (r > b->cl->b.size()) fail(fmt("cluster rank %u of %zu", r - 1, b->cl->b.size()), &l);
  return b->cl->b[r - 1];
}
inline void* at(Block* b, uint32_t off, size_t n, const Loc& l) {
  if (off % n) fail(fmt("misaligned %zu-byte shared access at offset %#x", n, off), &l);
  if (off >= DYN_OFF && off - DYN_OFF + n <= S.cfg.smem) return b->dyn + (off - DYN_OFF);
  if (off >= PAGE && off < DYN_OFF && off - PAGE + n <= S.static_used) return b->map + off;
  fail(off >= DYN_OFF ? fmt("dynamic shared memory overrun: byte %u of %zu", off - DYN_OFF, S.cfg.smem)
                      : fmt("bad shared offset %#x", off),
       &l);
}
inline uint32_t mapa(uint32_t a, uint32_t r, Loc loc) {
  if (a >> 24) fail("mapa of an address that is already mapped", &loc);
  if (r >= S.cur->blk->cl->b.size()) fail(fmt("mapa to rank %u of %zu", r, S.cur->blk->cl->b.size()), &loc);
  return (r + 1) << 24 | a;
}

// ---------------------------------------------------------------- mbarrier
inline MBar& mbar(Block* b, uint32_t off, const Loc& l) {
  auto it = b->mb.find(off & 0xffffff);
  if (it == b->mb.end())
    fail(fmt("mbarrier at shared offset %#x of rank %d was never initialised", off & 0xffffff, b->rank), &l);
  return it->second;
}
inline void mbar_check(MBar& m, const Loc& l) {
  if (m.tx > 0xfffff || m.tx < -0xfffff) fail(fmt("mbarrier tx-count %ld out of range", (long)m.tx), &l);
  if (m.pending == 0 && m.tx == 0) {
    m.phase++;
    m.pending = m.count;
    m.hb_done = m.hb;
    wake_all(m.wait);
  }
}
inline void mbar_init(uint32_t a, uint32_t count, Loc loc) {
  Block* b = S.cur->blk;
  memset(at(b, a, 8, loc), 0, 8);
  MBar& m = b->mb[a];
  m = MBar();
  m.count = m.pending = count;
  m.seen.assign(b->th.size(), 0);
}
inline void mbar_arrive(uint32_t a, uint32_t expect_tx, Loc loc) {
  Block* b = target(a, loc);
  MBar& m = mbar(b, a, loc);
  m.tx += expect_tx;
  hb_release(m.hb);
  if (m.pending-- == 0) fail("more arrivals at an mbarrier than it counts in a phase", &loc);
  mbar_check(m, loc);
  maybe_yield();
}
// Until the phase of this parity is over; a timed wait also ends, with false, at a tick of the clock.
inline bool mbar_wait(uint32_t a, uint32_t parity, Loc loc, bool timed = false) {
  Thread* t = S.cur;
  t->timed = timed;
  MBar& m = mbar(t->blk, a, loc);
  if (a >> 24) fail("mbarrier wait on another block's barrier", &loc);
  maybe_yield();
  while ((m.phase & 1) == (parity & 1)) {  // the phase of this parity is still the current one
    snprintf(t->note, sizeof t->note, "@%#x phase %lu pending %u tx %ld parity %u", a, (unsigned long)m.phase,
             m.pending, (long)m.tx, parity);
    const uint64_t before = S.clock;
    m.wait.push_back(t);
    wait_as(MBAR, loc);
    if (S.clock != before && (m.phase & 1) == (parity & 1)) return false;
  }
  if (opt.strict_mbar && !S.broken && m.phase != m.seen[t->lin] + 1)
    fail(fmt("mbarrier wait (parity %u) met by phase count %lu, the last one this thread saw was %lu: %s", parity,
             (unsigned long)m.phase, (unsigned long)m.seen[t->lin],
             m.phase <= m.seen[t->lin] ? "it waited for nothing (wrong parity?)" : "it missed a phase"),
         &loc);
  m.seen[t->lin] = m.phase;
  hb_acquire(m.hb_done);
  return true;
}
// The cluster's barrier, of which a thread that exits is no longer a part.
inline void cluster_leave(Cluster* c) {
  if (--c->size && c->arrived == c->size) {
    c->arrived = 0;
    c->phase++;
    c->hb_done = c->hb;
    wake_all(c->wait);
  }
}
// An st.async arrives: its data,
EMU_NOSAN inline void land_data(const Async& a) {
  if (a.dst->live == 0) fail("st.async lands in a block that has exited", &a.loc);
  void* p = at(a.dst, a.off, a.n, a.loc);
  mbar(a.dst, a.bar, a.loc);
#ifdef EMU_RACE
  if (race_on) touch(p, a.n, true, a.warp, *a.from, 0);
#endif
  memcpy(p, a.val, a.n);
}
// and then, at once or later, complete_tx.
EMU_NOSAN inline void land(const Async& a) {
  if (!a.written) land_data(a);
  if (a.dst->live == 0) fail("st.async completes in a block that has exited", &a.loc);
  MBar& m = mbar(a.dst, a.bar, a.loc);
#ifdef EMU_RACE
  if (race_on) join(m.hb.v, *a.from);
#endif
  m.tx -= a.n;
  mbar_check(m, a.loc);
}
// How often a look at one of the stores from one block to another lets it land.
inline double speed(const Async& a) {
  static const double of_pair[] = {1, .5, .05, 0};
  if (!opt.apart) return 1;
  const auto [at, fresh] = S.speed.try_emplace({a.src, a.dst}, 0);
  if (fresh) at->second = of_pair[S.below(4)];
  return at->second;
}
// n: 4, 8 or 16 bytes, as one vector.
inline void st_async(uint32_t a, const void* v, int n, uint32_t bar, Loc loc) {
  Block* d = target(a, loc);
  if (d != target(bar, loc)) fail("st.async: data and mbarrier are in different blocks", &loc);
  at(d, a & 0xffffff, n, loc);
  Async x{S.cur->blk, d, a & 0xffffff, {}, n, bar & 0xffffff, loc, hb_snap(), S.cur->warp->id};
  memcpy(x.val, v, n);
  S.asyncs++;
  if (lost()) return;
  if (S.p_land >= 1)
    land(x);
  else {
    if (opt.apart && S.chance(.3)) land_data(x), x.written = true;
    S.flight.push_back(x);
  }
  maybe_yield();
}
// One of the stores under way, in any order, lands, if the pair of its blocks lets it. `must`: one of the fastest
// pair.
inline void land_one(bool must) {
  size_t i = S.below((uint32_t)S.flight.size());
  if (must) {
    for (size_t n = 0, k = i; n < S.flight.size(); n++, k = k + 1 < S.flight.size() ? k + 1 : 0)
      if (speed(S.flight[k]) > speed(S.flight[i])) i = k;
  } else if (!S.chance(speed(S.flight[i])))
    return;
  Async a = S.flight[i];
  S.flight[i] = S.flight.back();
  S.flight.pop_back();
  land(a);
}
// cp.async: done at once or at the wait, by chance; nobody knows before the wait
EMU_NOSAN inline void cp_async_of(void* p, const void* s, int n, std::shared_ptr<const uint4> value) {
  hb_touch(p, n, true);
  touch_by_copy(p, n, false);
  const bool there = S.chance(0.5);
  if (there) memcpy(p, value ? value.get() : s, n);
  S.cur->cp.push_back({p, s, n, S.cur->cp_group, there, std::move(value)});
}
inline void cp_async(uint32_t d, const void* s, int n, Loc loc) {
  void* p = at(S.cur->blk, d, n, loc);
  if ((uintptr_t)s % n) fail(fmt("cp.async of %d bytes from the misaligned address %p", n, s), &loc);
  hb_touch(s, n, false);
  cp_async_of(p, s, n, nullptr);
}
// Of four words that other blocks wrote: as stale as a load of them may be, and read at once, as nobody may write
// there before the wait.
inline void cp_async_exchanged(uint32_t d, const void* s, Loc loc) {
  constexpr int n = sizeof(uint4);
  void* p = at(S.cur->blk, d, n, loc);
  if ((uintptr_t)p % n || (uintptr_t)s % n)
    fail(fmt("cp.async of %d bytes from or to a misaligned address", n), &loc);
  cp_async_of(p, s, n, std::make_shared<uint4>(weak_load((const uint4*)s)));
}
inline void cp_commit() { S.cur->cp_group++; }
EMU_NOSAN inline void cp_wait(int keep) {  // keep < 0: wait_all
  auto& v = S.cur->cp;
  int upto = keep < 0 ? 1 << 30 : S.cur->cp_group - keep;
  auto it = std::stable_partition(v.begin(), v.end(), [&](auto& c) { return c.group >= upto; });
  for (auto i = it; i != v.end(); ++i) {
    hb_touch(i->d, i->n, true);
    touch_by_copy(i->d, i->n, true);
    if (!i->there) memcpy(i->d, i->value ? i->value.get() : i->s, i->n);
  }
  v.erase(it, v.end());
}

}  // namespace emu
