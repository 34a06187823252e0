// What the machine could do at best: the yardsticks of "% of the limit".
#pragma once
#include "simd.h"

namespace fastrnn {
namespace {

// Independent multiply-adds in registers.
inline double fma_loop(int64_t iterations) {
  using S = Simd<float>;
  constexpr int kChains = 12;
  S::V acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = S::set(1e-3 * i);
  const S::V x = S::set(0.999), y = S::set(1e-3);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      acc[i] = acc[i] * x + y;
#if defined(__x86_64__)
      asm volatile("" : "+x"(acc[i]));  // keeps the loop from being folded away
#else
      asm volatile("" : "+w"(acc[i]));
#endif
    }
  }
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
#pragma GCC unroll 8
    for (int j = 0; j < kChains; ++j) {
#if defined(__x86_64__)
      asm volatile("" : "+x"(sum[j]));
#else
      asm volatile("" : "+w"(sum[j]));
#endif
    }
  }
  return static_cast<double>(repeats) * (count / step * step) * sizeof(float);
}

}  // namespace
}  // namespace fastrnn
