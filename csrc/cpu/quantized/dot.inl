// Dot products of int8, 4 columns a lane: what each instruction set has for them, and as Int8DotInstruction what some
// of its processors have beyond it. All of them give the same sums.
//
// An Int8Dot has
//     Left   4 int8 of a left operand, once for every lane of a register
//     Sum    the sums of the kLanes lanes of a register: clear(); add(w, left), sum += w . left of 4 * kLanes bytes
//            at w; total(), as int32
//     kOffset   whether total() lacks 128 times the sum of the row of w: where the instruction multiplies unsigned
//            bytes by signed ones, the left operand goes in with 128 added to it
// Magnitudes are at most 127 on both sides. So where two products are added in 16 bits they cannot saturate, at most
// 2 * 127 * 127 = 32258, which unsigned bytes up to 255 would: the left operand's sign goes to the weight there.
#pragma once
#include "cpu/simd/lanes.h"
#include "params/quantized.h"

namespace fastrnn {
namespace {

FASTRNN_INLINE int32_t load_columns(const int8_t* p) {
  int32_t columns;
  __builtin_memcpy(&columns, p, 4);
  return columns;
}
constexpr int32_t kPlus128 = static_cast<int32_t>(0x80808080);  // exclusive-or with it adds 128 to every byte

#if defined(FASTRNN_AVX512)

struct Int8Dot {
  static constexpr bool kOffset = false;
  struct Left {
    __m512i magnitude;
    __mmask64 negative;
    FASTRNN_INLINE explicit Left(const int8_t* a) {
      const __m512i all = _mm512_set1_epi32(load_columns(a));
      magnitude = _mm512_abs_epi8(all);
      negative = _mm512_movepi8_mask(all);
    }
  };
  struct Sum {
    __m512i sum;
    FASTRNN_INLINE void clear() { sum = _mm512_setzero_si512(); }
    FASTRNN_INLINE void add(const int8_t* w, const Left& a) {
      const __m512i weights = _mm512_loadu_si512(w);
      const __m512i turned = _mm512_mask_sub_epi8(weights, a.negative, _mm512_setzero_si512(), weights);
      const __m512i pairs = _mm512_maddubs_epi16(a.magnitude, turned);
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    FASTRNN_INLINE Simd<float>::VInt total() const { return (Simd<float>::VInt)sum; }
  };
};

// AVX512-VNNI. The instruction by name, so that the functions around it need no target of their own.
struct Int8DotInstruction {
  static constexpr bool kOffset = true;
  struct Left {
    __m512i shifted;
    FASTRNN_INLINE explicit Left(const int8_t* a) : shifted(_mm512_set1_epi32(load_columns(a) ^ kPlus128)) {}
  };
  struct Sum {
    __m512i sum;
    FASTRNN_INLINE void clear() { sum = _mm512_setzero_si512(); }
    FASTRNN_INLINE void add(const int8_t* w, const Left& a) {
      const __m512i weights = _mm512_loadu_si512(w);
      asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a.shifted), "v"(weights));
    }
    FASTRNN_INLINE Simd<float>::VInt total() const { return (Simd<float>::VInt)sum; }
  };
};

#elif defined(FASTRNN_AVX2)

struct Int8Dot {
  static constexpr bool kOffset = false;
  struct Left {
    __m256i magnitude, all;
    FASTRNN_INLINE explicit Left(const int8_t* a) : all(_mm256_set1_epi32(load_columns(a))) {
      magnitude = _mm256_abs_epi8(all);
    }
  };
  struct Sum {
    __m256i sum;
    FASTRNN_INLINE void clear() { sum = _mm256_setzero_si256(); }
    FASTRNN_INLINE void add(const int8_t* w, const Left& a) {
      const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i pairs = _mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8(weights, a.all));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    FASTRNN_INLINE Simd<float>::VInt total() const { return (Simd<float>::VInt)sum; }
  };
};

// AVX-VNNI.
struct Int8DotInstruction {
  static constexpr bool kOffset = true;
  struct Left {
    __m256i shifted;
    FASTRNN_INLINE explicit Left(const int8_t* a) : shifted(_mm256_set1_epi32(load_columns(a) ^ kPlus128)) {}
  };
  struct Sum {
    __m256i sum;
    FASTRNN_INLINE void clear() { sum = _mm256_setzero_si256(); }
    FASTRNN_INLINE void add(const int8_t* w, const Left& a) {
      const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
      asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a.shifted), "x"(weights));
    }
    FASTRNN_INLINE Simd<float>::VInt total() const { return (Simd<float>::VInt)sum; }
  };
};

#elif defined(FASTRNN_NEON)

struct Int8Dot {
  static constexpr bool kOffset = false;
  struct Left {
    int8x16_t all;
    FASTRNN_INLINE explicit Left(const int8_t* a) : all(vreinterpretq_s8_s32(vdupq_n_s32(load_columns(a)))) {}
  };
  struct Sum {
    int32x4_t low, high;  // of lanes 0, 1 and 2, 3, two columns apart
    FASTRNN_INLINE void clear() { low = high = vdupq_n_s32(0); }
    FASTRNN_INLINE void add(const int8_t* w, const Left& a) {
      const int8x16_t weights = vld1q_s8(w);
      low = vpadalq_s16(low, vmull_s8(vget_low_s8(weights), vget_low_s8(a.all)));
      high = vpadalq_s16(high, vmull_high_s8(weights, a.all));
    }
    FASTRNN_INLINE Simd<float>::VInt total() const { return (Simd<float>::VInt)vpaddq_s32(low, high); }
  };
};

// SDOT.
struct Int8DotInstruction {
  static constexpr bool kOffset = false;
  using Left = Int8Dot::Left;
  struct Sum {
    int32x4_t sum;
    FASTRNN_INLINE void clear() { sum = vdupq_n_s32(0); }
    FASTRNN_INLINE void add(const int8_t* w, const Left& a) {
      const int8x16_t weights = vld1q_s8(w);
      // Not .arch_extension: binutils up to 2.40 knows the instruction from armv8.2-a on alone.
      asm(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(weights), "w"(a.all));
    }
    FASTRNN_INLINE Simd<float>::VInt total() const { return (Simd<float>::VInt)sum; }
  };
};

#elif defined(__SSE2__)

struct Int8Dot {
  static constexpr bool kOffset = false;
  // 8 bytes as 16 bits.
  static FASTRNN_INLINE __m128i low(__m128i v) { return _mm_srai_epi16(_mm_unpacklo_epi8(v, v), 8); }
  static FASTRNN_INLINE __m128i high(__m128i v) { return _mm_srai_epi16(_mm_unpackhi_epi8(v, v), 8); }
  struct Left {
    __m128i all;
    FASTRNN_INLINE explicit Left(const int8_t* a) : all(low(_mm_set1_epi32(load_columns(a)))) {}
  };
  struct Sum {
    __m128i first, second;  // of lanes 0, 1 and 2, 3, two columns apart
    FASTRNN_INLINE void clear() { first = second = _mm_setzero_si128(); }
    FASTRNN_INLINE void add(const int8_t* w, const Left& a) {
      const __m128i weights = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
      first = _mm_add_epi32(first, _mm_madd_epi16(low(weights), a.all));
      second = _mm_add_epi32(second, _mm_madd_epi16(high(weights), a.all));
    }
    FASTRNN_INLINE Simd<float>::VInt total() const {
      const __m128 a = _mm_castsi128_ps(first), b = _mm_castsi128_ps(second);
      const __m128i even = _mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
      const __m128i odd = _mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
      return (Simd<float>::VInt)_mm_add_epi32(even, odd);
    }
  };
};
using Int8DotInstruction = Int8Dot;

#else

struct Int8Dot {
  static constexpr bool kOffset = false;
  struct Left {
    const int8_t* columns;
    FASTRNN_INLINE explicit Left(const int8_t* a) : columns(a) {}
  };
  struct Sum {
    Simd<float>::VInt sum;
    FASTRNN_INLINE void clear() { sum = Simd<float>::VInt{}; }
    FASTRNN_INLINE void add(const int8_t* w, const Left& a) {
      for (int lane = 0; lane < Simd<float>::W; ++lane) {
        int32_t of_lane = 0;
        for (int i = 0; i < 4; ++i) of_lane += int32_t{w[4 * lane + i]} * a.columns[i];
        sum[lane] += of_lane;
      }
    }
    FASTRNN_INLINE Simd<float>::VInt total() const { return sum; }
  };
};
using Int8DotInstruction = Int8Dot;

#endif

}  // namespace
}  // namespace fastrnn
