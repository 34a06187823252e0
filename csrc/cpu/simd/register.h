// One vector register of this instruction set and the functions that kernels need of it. Included
// once by each file of cpu/isa, which has the flags of its instruction set and FASTRNN_VECTOR_BYTES defined.
//
// GCC/Clang vector extensions carry the arithmetic, so one source serves every instruction set and
// a*b+c contracts to a fused multiply-add where there is one. Intrinsics appear only where the
// extensions have no word for an instruction (masked access, fp16 conversion, reciprocal estimate).
//
// Everything is in an anonymous namespace, what comes from shared headers is always inline, and nothing of std is
// used: an inline function that leaked out of such a file could replace the baseline copy of the same function at
// link time.
#pragma once
#include "params/rnn.h"

#if defined(__x86_64__)
// g++ 12's own header initialises registers with themselves where any value will do, and g++ 12 warns of it wherever
// that is inlined into a lambda.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(FASTRNN_NEON)
#include <arm_neon.h>
#endif

namespace fastrnn {
namespace {

template <class A>
constexpr FASTRNN_INLINE A min_of(A a, A b) {
  return b < a ? b : a;
}
template <class A>
constexpr FASTRNN_INLINE A max_of(A a, A b) {
  return a < b ? b : a;
}
constexpr FASTRNN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};

template <class T>
struct Simd {
  static constexpr int W = FASTRNN_VECTOR_BYTES / sizeof(T);  // lanes
  typedef T V __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
  typedef T Unaligned __attribute__((vector_size(FASTRNN_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  using Int = typename IntOf<T>::type;
  typedef Int VInt __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));

  // Minus, since v - 0 is v even at -0: adding to zero would cost an instruction a broadcast.
  static FASTRNN_INLINE V broadcast(T v) { return v - V{}; }
  static FASTRNN_INLINE V set(double v) { return broadcast(static_cast<T>(v)); }
  // a < b ? a : b and a > b ? a : b, lane by lane: b where either is NaN, as the x86 instructions do.
  static FASTRNN_INLINE V min(V a, V b) {
#if defined(FASTRNN_AVX512)
    if constexpr (sizeof(T) == 4) return (V)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(FASTRNN_AVX2)
    if constexpr (sizeof(T) == 4) return (V)_mm256_min_ps((__m256)a, (__m256)b);
#endif
    return a < b ? a : b;
  }
  static FASTRNN_INLINE V max(V a, V b) {
#if defined(FASTRNN_AVX512)
    if constexpr (sizeof(T) == 4) return (V)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(FASTRNN_AVX2)
    if constexpr (sizeof(T) == 4) return (V)_mm256_max_ps((__m256)a, (__m256)b);
#endif
    return a > b ? a : b;
  }
  static FASTRNN_INLINE V load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static FASTRNN_INLINE void store(T* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }

  // The first n lanes, zero elsewhere; never touches memory beyond them.
  static FASTRNN_INLINE V load_n(const T* p, int n) {
    if (n >= W) return load(p);
#ifdef FASTRNN_AVX512
    if constexpr (sizeof(T) == 4) {
      return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
    } else {
      return (V)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
    }
#else
    V v{};
    for (int j = 0; j < n; ++j) v[j] = p[j];
    return v;
#endif
  }
  static FASTRNN_INLINE void store_n(T* p, V v, int n) {
    if (n >= W) {
      store(p, v);
      return;
    }
#ifdef FASTRNN_AVX512
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
    } else {
      _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
    }
#else
    for (int j = 0; j < n; ++j) p[j] = v[j];
#endif
  }
};

// ---- half types -------------------------------------------------------------------------------

FASTRNN_INLINE float bits_to_float(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
FASTRNN_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
}
FASTRNN_INLINE float bfloat16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }
FASTRNN_INLINE uint16_t float_to_bfloat16(float f) {  // round to nearest even
  const uint32_t u = float_to_bits(f);
  if (f != f) return 0x7fc0;
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
FASTRNN_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t mantissa = h & 0x3ff, exponent = (h >> 10) & 0x1f;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    return bits_to_float(float_to_bits(static_cast<float>(mantissa) * 5.9604644775390625e-8f) | sign);
  }
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
  return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
FASTRNN_INLINE uint16_t float_to_half(float f) {  // round to nearest even
  const uint32_t u = float_to_bits(f);
  const uint32_t sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 2^-1 aligns the mantissa, hardware rounds
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

// n lanes of a row in the layer's dtype, as compute values. The dtype is a run-time value: the
// branch is taken once a vector, next to dozens of multiply-adds.
template <class T>
FASTRNN_INLINE typename Simd<T>::V load_as(const void* row, int64_t index, int n, Dtype dtype) {
  using S = Simd<T>;
  if constexpr (sizeof(T) == 8) {
    return S::load_n(static_cast<const double*>(row) + index, n);
  } else {
    if (dtype == Dtype::kFloat) return S::load_n(static_cast<const float*>(row) + index, n);
    const uint16_t* p = static_cast<const uint16_t*>(row) + index;
#ifdef FASTRNN_AVX512
    const __mmask16 mask = static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1);
    const __m256i raw = _mm256_maskz_loadu_epi16(mask, p);
    if (dtype == Dtype::kHalf) return (typename S::V)_mm512_cvtph_ps(raw);
    return (typename S::V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
#else
#ifdef FASTRNN_AVX2
    if (n >= 8) {
      const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      if (dtype == Dtype::kHalf) return (typename S::V)_mm256_cvtph_ps(raw);
      return (typename S::V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16);
    }
#elif defined(FASTRNN_NEON)
    if (n >= 4) {
      const uint16x4_t raw = vld1_u16(p);
      if (dtype == Dtype::kHalf) return (typename S::V)vcvt_f32_f16(vreinterpret_f16_u16(raw));
      return (typename S::V)vshlq_n_u32(vmovl_u16(raw), 16);
    }
#endif
    typename S::V v{};
    for (int j = 0; j < min_of(n, S::W); ++j) {
      v[j] = dtype == Dtype::kHalf ? half_to_float(p[j]) : bfloat16_to_float(p[j]);
    }
    return v;
#endif
  }
}

#ifdef FASTRNN_AVX512
// v rounded to nearest even, as a half type's bits.
FASTRNN_INLINE __m256i half_bits(Simd<float>::V v, Dtype dtype) {
  if (dtype == Dtype::kHalf) return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#ifdef FASTRNN_AVX512_BF16
  return (__m256i)_mm512_cvtneps_pbh((__m512)v);
#else
  const __m512i u = (__m512i)v;
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(r);
#endif
}
#elif defined(FASTRNN_NEON)
FASTRNN_INLINE uint16x4_t half_bits(Simd<float>::V v, Dtype dtype) {
  if (dtype == Dtype::kHalf) return vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v));
  const uint32x4_t u = (uint32x4_t)v, odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint16x4_t rounded = vshrn_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
  const uint16x4_t number = vmovn_u32(vceqq_f32((float32x4_t)v, (float32x4_t)v));
  return vbsl_u16(number, rounded, vdup_n_u16(0x7fc0));
}
#endif

template <class T>
FASTRNN_INLINE void store_as(void* row, int64_t index, typename Simd<T>::V v, int n, Dtype dtype) {
  using S = Simd<T>;
  if constexpr (sizeof(T) == 8) {
    S::store_n(static_cast<double*>(row) + index, v, n);
  } else {
    if (dtype == Dtype::kFloat) {
      S::store_n(static_cast<float*>(row) + index, v, n);
      return;
    }
    uint16_t* p = static_cast<uint16_t*>(row) + index;
#ifdef FASTRNN_AVX512
    const __mmask16 mask = static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1);
    _mm256_mask_storeu_epi16(p, mask, half_bits(v, dtype));
#else
#ifdef FASTRNN_AVX2
    if (n >= 8 && dtype == Dtype::kHalf) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                       _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      return;
    }
#elif defined(FASTRNN_NEON)
    if (n >= 4) {
      vst1_u16(p, half_bits(v, dtype));
      return;
    }
#endif
    for (int j = 0; j < min_of(n, S::W); ++j) {
      p[j] = dtype == Dtype::kHalf ? float_to_half(v[j]) : float_to_bfloat16(v[j]);
    }
#endif
  }
}

// A whole register of the layer's dtype past the caches, for results larger than they are: an ordinary
// store would first read the line from memory. row + index must be a multiple of the bytes written.
// Other cores see it after stream_fence.
template <class T>
FASTRNN_INLINE void stream_as(void* row, int64_t index, typename Simd<T>::V v, Dtype dtype) {
#if defined(FASTRNN_AVX512)
  if constexpr (sizeof(T) == 8) {
    _mm512_stream_pd(static_cast<double*>(row) + index, (__m512d)v);
  } else if (dtype == Dtype::kFloat) {
    _mm512_stream_ps(static_cast<float*>(row) + index, (__m512)v);
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(row) + index), half_bits(v, dtype));
  }
#elif defined(FASTRNN_AVX2)
  if constexpr (sizeof(T) == 8) {
    _mm256_stream_pd(static_cast<double*>(row) + index, (__m256d)v);
  } else if (dtype == Dtype::kFloat) {
    _mm256_stream_ps(static_cast<float*>(row) + index, (__m256)v);
  } else {
    alignas(16) uint16_t half[8];
    store_as<T>(half, 0, v, 8, dtype);
    _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(row) + index),
                     _mm_load_si128(reinterpret_cast<const __m128i*>(half)));
  }
#else
  store_as<T>(row, index, v, Simd<T>::W, dtype);
#endif
}
FASTRNN_INLINE void stream_fence() {
#if defined(FASTRNN_AVX512) || defined(FASTRNN_AVX2)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace fastrnn
