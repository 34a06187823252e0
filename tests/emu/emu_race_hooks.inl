// The calls that -fsanitize=thread compiles in. In one translation unit of a program or library.
#define EMU_HOOK(name, n, write) \
  extern "C" EMU_NOSAN void name(void* p) { emu::hook(p, n, write, emu::place(__builtin_return_address(0))); }
#define EMU_HOOKS(n)                           \
  EMU_HOOK(__tsan_read##n, n, false)           \
  EMU_HOOK(__tsan_write##n, n, true)           \
  EMU_HOOK(__tsan_unaligned_read##n, n, false) \
  EMU_HOOK(__tsan_unaligned_write##n, n, true)
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
extern "C" {
EMU_NOSAN void __tsan_init() {}
EMU_NOSAN void __tsan_func_entry(void*) {}
EMU_NOSAN void __tsan_func_exit() {}
EMU_NOSAN void __tsan_vptr_update(void**, void*) {}
EMU_NOSAN void __tsan_vptr_read(void**) {}
EMU_NOSAN void __tsan_read_range(void* p, long n) {
  emu::hook(p, (int)n, false, emu::place(__builtin_return_address(0)));
}
EMU_NOSAN void __tsan_write_range(void* p, long n) {
  emu::hook(p, (int)n, true, emu::place(__builtin_return_address(0)));
}
// clang's, in place of memcpy and its kin; g++ calls those as they are.
#define EMU_COPY(call)                                                         \
  EMU_NOSAN void* __tsan_##call(void* to, const void* from, unsigned long n) { \
    const auto here = emu::place(__builtin_return_address(0));                 \
    emu::hook(const_cast<void*>(from), (int)n, false, here);                   \
    emu::hook(to, (int)n, true, here);                                         \
    return __builtin_##call(to, from, n);                                      \
  }
EMU_COPY(memcpy)
EMU_COPY(memmove)
EMU_NOSAN void* __tsan_memset(void* to, int value, unsigned long n) {
  emu::hook(to, (int)n, true, emu::place(__builtin_return_address(0)));
  return __builtin_memset(to, value, n);
}
// Function-local statics and shared_ptr: one OS thread runs everything.
EMU_NOSAN char __tsan_atomic8_load(const volatile char* p, int) { return *p; }
EMU_NOSAN int __tsan_atomic32_fetch_add(volatile int* p, int v, int) {
  const int old = *p;
  *p = old + v;
  return old;
}
}
