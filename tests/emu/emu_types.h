// CUDA's vocabulary for g++: qualifiers, vector types, the half types with CUDA's conversions.
#pragma once
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__
// Shared memory is declared through these two; plain __shared__ is left undefined on purpose.
#define SMEM_DYN(T, name) T* name = (T*)emu::dyn_smem()
#define SMEM_STATIC(T, name, dims) \
  auto& name = *(T(*) dims)emu::static_smem(__FILE__, __LINE__, #name, sizeof(T dims), alignof(T))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint32_t __float_as_uint(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
inline float __uint_as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

struct alignas(2) __nv_bfloat16 {
  uint16_t b;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 v) { return __uint_as_float((uint32_t)v.b << 16); }
inline __nv_bfloat16 __float2bfloat16(float f) {  // round to nearest even, NaN kept
  uint32_t u = __float_as_uint(f);
  if (f != f) return {0x7fff};
  return {(uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __float2bfloat16(f); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }

struct alignas(2) __half {
  uint16_t b;
};
// In numbers: g++ 11 has no _Float16 in C++.
inline float __half2float(__half v) {
  const uint32_t sign = (uint32_t)(v.b & 0x8000) << 16, rest = v.b & 0x7fff;
  if (rest >= 0x7c00)
    return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13 | (rest > 0x7c00 ? 0x400000 : 0));
  // As a float the exponent's bias is 112 less; what that leaves subnormal too, the product puts in its place.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}
inline __half __float2half_rn(float f) {  // round to nearest even, NaN kept
  const uint32_t u = __float_as_uint(f), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
  if (rest > 0x7f800000) return {(uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x3ff))};
  if (rest >= 0x47800000) return {(uint16_t)(sign | 0x7c00)};
  if (rest < 0x38800000) {  // subnormal: a sum whose last place is the half's
    return {(uint16_t)(sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000))};
  }
  return {(uint16_t)(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13)};
}
struct alignas(4) __half2 {
  __half x, y;
};
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
