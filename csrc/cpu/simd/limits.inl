// What the machine could do at best: the yardsticks of "% of the limit".
#pragma once
#include "cpu/simd/register.h"

namespace fastrnn {
namespace {

// Makes the compiler believe that v is used.
FASTRNN_INLINE void keep(Simd<float>::V& v) { asm volatile("" : "+m"(v)); }

// Independent multiply-adds in registers.
inline double fma_loop(int64_t iterations) {
  using S = Simd<float>;
#ifdef FASTRNN_NEON
  constexpr int kChains = 24;  // four pipes, whose results take four cycles
#else
  constexpr int kChains = 12;
#endif
  S::V acc[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) acc[i] = S::set(1e-3 * i);
  const S::V x = S::set(0.999), y = S::set(1e-3);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
#ifdef FASTRNN_NEON  // which adds to a register, and would copy y to one first
      asm("fmla %0.4s, %1.4s, %2.4s" : "+w"(acc[i]) : "w"(x), "w"(y));
#else
      acc[i] = acc[i] * x + y;
#endif
    }
  }
  S::V sum = acc[0];
  for (int i = 1; i < kChains; ++i) sum += acc[i];
  keep(sum);
  return static_cast<double>(iterations) * kChains * S::W * 2;
}

inline double read_loop(const float* data, int64_t count, int64_t repeats) {
  using S = Simd<float>;
  constexpr int kChains = 8;
  S::V sum[kChains] = {};
  const int64_t step = kChains * S::W;
  for (int64_t r = 0; r < repeats; ++r) {
    for (int64_t i = 0; i + step <= count; i += step) {
#pragma GCC unroll 8
      for (int j = 0; j < kChains; ++j) sum[j] += S::load(data + i + j * S::W);
    }
    S::V all = sum[0];
    for (int j = 1; j < kChains; ++j) all += sum[j];
    keep(all);
  }
  return static_cast<double>(repeats) * (count / step * step) * sizeof(float);
}

}  // namespace
}  // namespace fastrnn
