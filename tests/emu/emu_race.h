// Happens-before race check. The code under test is compiled with -fsanitize=thread, so that the compiler
// calls __tsan_read4(p) and so on before each access, and emu_race_hooks.inl defines those hooks here:
// libtsan is not linked. Unlike random schedules this finds a missing barrier in any run that executes
// both accesses, whatever their order was.
//
// Vector clocks are per warp: races between lanes of one warp are not seen, nor those between blocks of
// different waves of a plain launch (raise emu::opt.resident). Orders known: __syncthreads, cluster and
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
inline void race_fail(const char* k1, int w1, uint32_t pc1, const char* k2, int w2, uint32_t pc2, const void* p) {
  race_on = false;
  auto nm = [](int w) {
    return fmt("block %u warp %d", S.warps[w]->b->idx.x, S.warps[w]->id % (int)S.warps[w]->b->w.size());
  };
  Block* b = nullptr;
  for (auto& x : S.blocks)
    if (p >= x->map && p < x->map + x->map_n) b = x.get();
  const std::string message = fmt(
      "RACE: %s by %s (%s) and %s by %s (%s) are not ordered; %s", k1, nm(w1).c_str(),
      pc1 ? pcs(pc1).c_str() : "st.async landing", k2, nm(w2).c_str(), pc2 ? pcs(pc2).c_str() : "st.async landing",
      b ? fmt("shared memory of block %u, %s+%ld", b->idx.x, p >= b->dyn ? "dynamic" : "static",
              (long)((uint8_t*)p - (p >= b->dyn ? b->dyn : b->map + PAGE)))
              .c_str()
        : "device memory");
  if (!S.cur) throw Error(message);
  // Not thrown from here: g++ takes the hooks for functions that never throw. The fiber is left where it is.
  S.error = message;
  S.cur->st = DONE;
  to_sched();
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
}
inline void hb_touch(const void* p, int n, bool wr) { hook(p, n, wr, place(__builtin_return_address(0))); }
