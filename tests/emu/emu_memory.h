// "Device" memory between guard pages, and what happens when a kernel touches one: the access becomes
// an emu::Error thrown from the launch, as any other error of a kernel does.
#pragma once
#include <csetjmp>
#include <csignal>

#include "emu_core.h"

namespace emu {
struct Guard {
  size_t size;
  std::string what;
};
inline auto& guards() {
  static std::map<uintptr_t, Guard> g;
  return g;
}
inline uint8_t* map_pages(size_t n, bool arena = true) {
#ifdef EMU_RACE
  if (arena) return race_map(n);
#endif
  (void)arena;
  void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("mmap failed");
  return (uint8_t*)p;
}
inline void guard(uint8_t* p, const std::string& what, size_t n = PAGE) {
  mprotect(p, n, PROT_NONE);
  guards()[(uintptr_t)p] = {n, what};
}

inline size_t page_bytes(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }
// A buffer whose end (to 16 bytes) is at a guard page, filled with NaN so that a read of what nobody
// wrote shows in every result. bytes may be 0.
inline void* dev_alloc_bytes(size_t bytes, const std::string& name) {
  bytes = (bytes + 15) / 16 * 16;
  const size_t full = page_bytes(bytes);
  uint8_t* p = map_pages(full + 2 * GUARD);
  guard(p, "before " + name, GUARD);
  guard(p + GUARD + full, "past the end of " + name, GUARD);
  memset(p + GUARD, 0xff, full);
  return p + GUARD + full - bytes;
}
inline void dev_free(void* data, size_t bytes) {
  bytes = (bytes + 15) / 16 * 16;
  const size_t full = page_bytes(bytes);
  uint8_t* p = (uint8_t*)data + bytes - full - GUARD;
  guards().erase((uintptr_t)p);
  guards().erase((uintptr_t)p + GUARD + full);
#ifdef EMU_RACE
  mprotect(p, full + 2 * GUARD, PROT_READ | PROT_WRITE);  // the arena only grows
#else
  munmap(p, full + 2 * GUARD);
#endif
}
template <class T>
T* dev_alloc(size_t n, const char* name = "buffer") {
  return (T*)dev_alloc_bytes(n * sizeof(T), std::string("device buffer ") + name);
}

// While it lives, an access to memory that is not there comes back to run() as an Error. Handlers and
// signal stack of the surrounding program (a Python with its own) are put back afterwards.
class CatchCrash {
 public:
  CatchCrash() {
    stack_t stack{};
    stack.ss_sp = memory_;
    stack.ss_size = sizeof memory_;
    sigaltstack(&stack, &stack_before_);
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before_[0]);
    sigaction(SIGBUS, &action, &before_[1]);
  }
  ~CatchCrash() {
    sigaction(SIGSEGV, &before_[0], nullptr);
    sigaction(SIGBUS, &before_[1], nullptr);
    sigaltstack(&stack_before_, nullptr);
  }
  CatchCrash(const CatchCrash&) = delete;
  CatchCrash& operator=(const CatchCrash&) = delete;

  // f may be left by a jump: nothing of it that needs a destructor may be on the stack then. Kernels run
  // on fibers, which are simply dropped.
  template <class F>
  void run(F f) {
    if (sigsetjmp(back_, 1)) throw Error(message_);
    f();
  }

 private:
  static void handle(int, siginfo_t* info, void*) {
    const uintptr_t a = (uintptr_t)info->si_addr;
    auto it = guards().upper_bound(a);
    const char* what = "an address no buffer is near";
    if (it != guards().begin() && a - (--it)->first < it->second.size) what = it->second.what.c_str();
    message_ = fmt("invalid access to %p: %s, by ", info->si_addr, what) + who(S.cur);
    if (S.cur && S.cur->loc.line()) message_ += ", which last waited at " + where(S.cur->loc);
    siglongjmp(back_, 1);
  }
  inline static uint8_t memory_[64 << 10];
  inline static sigjmp_buf back_;
  inline static std::string message_;
  stack_t stack_before_{};
  struct sigaction before_[2] = {};
};
}  // namespace emu
