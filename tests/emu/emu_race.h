// Happens-before race check. The code under test is compiled with -fsanitize=thread, so that the compiler
// calls __tsan_read4(p) and so on before each access, and emu_race_hooks.inl defines those hooks here:
// libtsan is not linked. Unlike random schedules this finds a missing barrier in any run that executes
// both accesses, whatever their order was.
//
// Vector clocks are per warp: races between lanes of one warp are not seen, nor those between blocks of
// different waves of a plain launch (raise emu::opt.resident). Copies into shared memory (cp.async) are looked at
// by lane: nobody reads before the wait for a copy, and between a lane's copy and another lane's read, whichever
// is first, their warp meets in a __syncwarp or a __syncthreads, as nothing else that it does together orders
// memory. Orders known: __syncthreads, cluster and
// grid barriers, mbarrier arrive / complete_tx -> wait, st.async issue -> landing, acquire polls and
// release adds, atomics. A shadow cell covers 2 bytes of shared or dev_alloc memory.
#pragma once
inline void to_sched();
struct RaceWarp {
  std::vector<uint32_t> vc;
  bool bump = false;
  Snap snap;
};
struct Cell {                 // last write, last read:
  uint32_t we, re, wpc, rpc;  // epoch, place
  uint16_t ww, rw;            // warp + 1
  uint32_t rx;                // more readers
  // Of copies: which lanes of a warp (+ 1) have read since it met for the `met`th time, and of the last copy the
  // warp (+ 1, 0: none), its lane, how often the warp had met when it landed, and whether it is yet to land.
  uint32_t lanes, met, copied;
  uint16_t of, by;
  uint8_t lane;
  bool coming;
};
struct Rd {
  uint16_t w;
  uint32_t e, pc;
};
inline bool race_on = false;  // plain: the hooks run before rc() is made
struct Race {
  uint8_t *arena, *top;
  Cell* cell;
  size_t N = 8ull << 30;
  std::vector<RaceWarp> w;
  std::vector<std::vector<Rd>> more{1};
  std::map<const void*, Clock> addr;
  Race() {
    arena = top = (uint8_t*)mmap(0, N, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    cell = (Cell*)mmap(0, N / 2 * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    if (arena == MAP_FAILED || cell == MAP_FAILED) throw Error("race arena: mmap failed");
  }
};
inline Race& rc() {
  static Race r;
  return r;
}
inline uint8_t* race_map(size_t n) {
  auto& r = rc();
  uint8_t* p = r.top;
  r.top += n;
  if (r.top > r.arena + r.N) throw Error("race arena full");
  return p;
}
inline uint8_t* race_begin(size_t nwarps) {
  auto& r = rc();
  r.w.assign(nwarps, {});
  for (auto& x : r.w) x.vc.assign(nwarps, 0);
  for (size_t i = 0; i < nwarps; i++) r.w[i].vc[i] = 1;
  r.more.resize(1);
  r.addr.clear();
  madvise(r.cell, (r.top - r.arena) / 2 * sizeof(Cell), MADV_DONTNEED);
  race_on = opt.race;
  return r.top;
}
inline void race_end(uint8_t* mark) {
  auto& r = rc();
  race_on = false;
  mprotect(mark, r.top - mark, PROT_READ | PROT_WRITE);
  madvise(mark, r.top - mark, MADV_DONTNEED);
  madvise(r.cell + (mark - r.arena) / 2, (r.top - mark) / 2 * sizeof(Cell), MADV_DONTNEED);
  r.top = mark;
}
inline void join(std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  if (a.size() < b.size()) a.resize(b.size());
  for (size_t i = 0; i < b.size(); i++) a[i] = std::max(a[i], b[i]);
}
inline RaceWarp& me() { return rc().w[S.cur->warp->id]; }
inline void hb_release(Clock& c) {
  join(c.v, me().vc);
  me().bump = true;
}
inline void hb_acquire(const Clock& c) {
  join(me().vc, c.v);
  me().snap = nullptr;
}
inline Snap hb_snap() {
  auto& m = me();
  if (!m.snap) m.snap = std::make_shared<const std::vector<uint32_t>>(m.vc);
  m.bump = true;
  return m.snap;
}
// Places in the code are kept as 32-bit offsets in the library or program that this is linked into; 0 is
// the landing of an st.async.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
EMU_NOSAN inline uint32_t place(const void* return_address) {
  return (uint32_t)((uintptr_t)return_address - (uintptr_t)__ehdr_start);
}
// "stepwise.cuh:88", by addr2line.
inline std::string pcs(uint32_t pc) {
  Dl_info at;
  if (!dladdr(__ehdr_start, &at)) return "?";
  if (((const Elf64_Ehdr*)__ehdr_start)->e_type == ET_EXEC) pc += (uint32_t)(uintptr_t)__ehdr_start;
  char line[300] = "";
  if (FILE* f = popen(fmt("addr2line -s -e '%s' %x", at.dli_fname, pc - 1).c_str(), "r")) {
    if (!fgets(line, sizeof line, f)) line[0] = 0;
    pclose(f);
  }
  if (char* end = strchr(line, '\n')) *end = 0;
  return line;
}
// Not thrown: g++ takes the hooks for functions that never throw. The fiber is left where it is.
inline void end_with(const std::string& message) {
  race_on = false;
  if (!S.cur) throw Error(message);
  S.error = message;
  S.cur->st = DONE;
  to_sched();
}
inline std::string memory_of(const void* p) {
  for (auto& b : S.blocks)
    if (p >= b->map && p < b->map + b->map_n)
      return fmt("shared memory of block %u, %s+%ld", b->idx.x, p >= b->dyn ? "dynamic" : "static",
                 (long)((uint8_t*)p - (p >= b->dyn ? b->dyn : b->map + PAGE)));
  return "device memory";
}
inline void race_fail(const char* k1, int w1, uint32_t pc1, const char* k2, int w2, uint32_t pc2, const void* p) {
  auto nm = [](int w) {
    return fmt("block %u warp %d", S.warps[w]->b->idx.x, S.warps[w]->id % (int)S.warps[w]->b->w.size());
  };
  end_with(fmt("RACE: %s by %s (%s) and %s by %s (%s) are not ordered; %s", k1, nm(w1).c_str(),
               pc1 ? pcs(pc1).c_str() : "st.async landing", k2, nm(w2).c_str(),
               pc2 ? pcs(pc2).c_str() : "st.async landing", memory_of(p).c_str()));
}
inline void lanes_fail(const char* what, int lane, uint32_t pc, const void* p) {
  end_with(fmt("RACE: %s (%s): %s lane %d of the warp; %s", who(S.cur).c_str(), pc ? pcs(pc).c_str() : "cp.async",
               what, lane, memory_of(p).c_str()));
}
// The running thread reads,
EMU_NOSAN inline void touch_by_lane(const void* p, int n, uint32_t pc) {
  const uint32_t met = S.cur->warp->met;
  const uint16_t w = (uint16_t)(S.cur->warp->id + 1);
  const int lane = S.cur->lane;
  for (Cell* c = rc().cell + ((uint8_t*)p - rc().arena) / 2; n > 0; n -= 2, c++) {
    if (c->by && c->coming) return lanes_fail("reads before the wait what is copied by", c->lane, pc, p);
    if (c->by == w && c->copied == met && c->lane != lane)
      return lanes_fail("reads, without a __syncwarp between, what was copied by", c->lane, pc, p);
    if (c->of != w || c->met != met) c->of = w, c->met = met, c->lanes = 0;
    c->lanes |= 1u << lane;
  }
}
// or a copy of its begins, or has landed.
EMU_NOSAN inline void touch_by_copy(const void* p, int n, bool landed) {
  auto& r = rc();
  if (!race_on || p < r.arena || p >= r.top) return;
  const uint32_t met = S.cur->warp->met;
  const uint16_t w = (uint16_t)(S.cur->warp->id + 1);
  for (Cell* c = r.cell + ((uint8_t*)p - r.arena) / 2; n > 0; n -= 2, c++) {
    const uint32_t others = c->of == w && c->met == met ? c->lanes & ~(1u << S.cur->lane) : 0;
    if (!landed && others)
      return lanes_fail("copies, without a __syncwarp between, over what was read by", __builtin_ctz(others), 0, p);
    c->by = w;
    c->lane = (uint8_t)S.cur->lane;
    c->copied = met;
    c->coming = !landed;
  }
}
// One access by warp w whose knowledge is vc, own epoch e
EMU_NOSAN inline void touch(const void* p, int n, bool wr, int w, const std::vector<uint32_t>& vc, uint32_t pc) {
  auto& r = rc();
  size_t i = ((uint8_t*)p - r.arena) / 2;
  uint32_t e = vc[w];
  for (Cell* c = r.cell + i; n > 0; n -= 2, c++) {
    if (c->ww && c->ww != w + 1 && vc[c->ww - 1] < c->we)
      race_fail("write", c->ww - 1, c->wpc, wr ? "write" : "read", w, pc, p);
    if (!wr) {
      if (!c->rw || c->rw == w + 1) {
        c->rw = w + 1;
        c->re = e;
        c->rpc = pc;
      } else {
        if (!c->rx) {
          c->rx = (uint32_t)r.more.size();
          r.more.emplace_back();
        }
        auto& m = r.more[c->rx];
        auto it = std::find_if(m.begin(), m.end(), [&](auto& x) { return x.w == w; });
        if (it == m.end())
          m.push_back({(uint16_t)w, e, pc});
        else {
          it->e = e;
          it->pc = pc;
        }
      }
    } else {
      if (c->rw && c->rw != w + 1 && vc[c->rw - 1] < c->re) race_fail("read", c->rw - 1, c->rpc, "write", w, pc, p);
      if (c->rx) {
        for (auto& x : r.more[c->rx])
          if (x.w != w && vc[x.w] < x.e) race_fail("read", x.w, x.pc, "write", w, pc, p);
        r.more[c->rx].clear();
      }
      c->rw = 0;
      c->ww = w + 1;
      c->we = e;
      c->wpc = pc;
      c->by = 0;
    }
  }
}
EMU_NOSAN inline void hook(const void* p, int n, bool wr, uint32_t pc) {
  if (!race_on) return;
  auto& r = rc();
  if (p < r.arena || p >= r.top || !S.cur) return;
  auto& m = me();
  if (m.bump) {
    m.vc[S.cur->warp->id]++;
    m.bump = false;
    m.snap = nullptr;
  }
  touch(p, n, wr, S.cur->warp->id, m.vc, pc);
  if (!wr) touch_by_lane(p, n, pc);
}
inline void hb_touch(const void* p, int n, bool wr) { hook(p, n, wr, place(__builtin_return_address(0))); }
