// Lanes of registers in other places: shuffles, transposition, rows that become columns as they are loaded, the sum
// of a register's lanes. For the files that register.h is for.
#pragma once
#include "cpu/simd/register.h"

namespace fastrnn {
namespace {

// Which lane of two registers, one behind the other, comes where. Constants in memory: index vectors built lane by
// lane cost more than the shuffles.
template <class T>
struct Lanes {
  alignas(64) typename Simd<T>::Int from[Simd<T>::W];
};
template <class T, class F>
constexpr Lanes<T> lanes(F from) {
  Lanes<T> made{};
  for (int j = 0; j < Simd<T>::W; ++j) made.from[j] = from(j);
  return made;
}
// What rows i and i + s become where they exchange the lanes that differ in bit s; and lanes j and j ^ s in each
// other's place.
template <class T, int s>
constexpr Lanes<T> kLowLanes = lanes<T>([](int j) { return j & s ? Simd<T>::W + j - s : j; });
template <class T, int s>
constexpr Lanes<T> kHighLanes = lanes<T>([](int j) { return j & s ? Simd<T>::W + j : j + s; });
template <class T, int s>
constexpr Lanes<T> kSwappedLanes = lanes<T>([](int j) { return j ^ s; });

// The shuffle, by each compiler's own word for it: which lanes meet, and so the order of every sum that is made with
// them, is the same with both.
#ifdef __clang__
// Its indices are arguments, each a constant.
template <class Int, Int... j>
struct Indices {};
template <class T, const Lanes<T>& kLanes, int... j>
FASTRNN_INLINE typename Simd<T>::V shuffle(typename Simd<T>::V a, typename Simd<T>::V b, Indices<int, j...>) {
  return __builtin_shufflevector(a, b, static_cast<int>(kLanes.from[j])...);
}
#endif
template <class T, const Lanes<T>& kLanes>
FASTRNN_INLINE typename Simd<T>::V shuffle(typename Simd<T>::V a, typename Simd<T>::V b) {
#ifdef __clang__
  return shuffle<T, kLanes>(a, b, __make_integer_seq<Indices, int, Simd<T>::W>{});
#else
  typename Simd<T>::VInt from;
  __builtin_memcpy(&from, kLanes.from, sizeof(from));
  return __builtin_shuffle(a, b, from);
#endif
}

// rows[i][j] <-> rows[j][i], by log2(W) stages of shuffles.
template <class T, int s = 1>
FASTRNN_INLINE void transpose(typename Simd<T>::V (&rows)[Simd<T>::W]) {
  using S = Simd<T>;
  if constexpr (s < S::W) {
#pragma GCC unroll 16
    for (int i = 0; i < S::W; ++i) {
      if (i & s) continue;
      const typename S::V a = rows[i], b = rows[i + s];
      rows[i] = shuffle<T, kLowLanes<T, s>>(a, b);
      rows[i + s] = shuffle<T, kHighLanes<T, s>>(a, b);
    }
    transpose<T, 2 * s>(rows);
  }
}

// ---- rows into columns by loads -----------------------------------------------------------------

#if defined(FASTRNN_AVX512) || defined(FASTRNN_AVX2)
// A register of pieces of 128 bits, each `step` bytes behind the one before: loads put them in their places, for
// which a processor has other units than for shuffles.
template <class T>
FASTRNN_INLINE typename Simd<T>::V load_pieces(const char* at, int64_t step) {
  using V = typename Simd<T>::V;
  if constexpr (sizeof(T) == 4) {
    const auto piece = [&](int i) { return _mm_loadu_ps(reinterpret_cast<const float*>(at + i * step)); };
#ifdef FASTRNN_AVX512
    __m512 v = _mm512_castps128_ps512(piece(0));
    v = _mm512_mask_broadcast_f32x4(v, 0x00f0, piece(1));
    v = _mm512_mask_broadcast_f32x4(v, 0x0f00, piece(2));
    return (V)_mm512_mask_broadcast_f32x4(v, 0xf000, piece(3));
#else
    return (V)_mm256_insertf128_ps(_mm256_castps128_ps256(piece(0)), piece(1), 1);
#endif
  } else {
    const auto piece = [&](int i) { return _mm_loadu_pd(reinterpret_cast<const double*>(at + i * step)); };
#ifdef FASTRNN_AVX512
    __m512d v = _mm512_castpd128_pd512(piece(0));
    v = _mm512_mask_broadcast_f64x2(v, 0x0c, piece(1));
    v = _mm512_mask_broadcast_f64x2(v, 0x30, piece(2));
    return (V)_mm512_mask_broadcast_f64x2(v, 0xc0, piece(3));
#else
    return (V)_mm256_insertf128_pd(_mm256_castpd128_pd256(piece(0)), piece(1), 1);
#endif
  }
}

// Of each piece of both, the low half's elements by turns, or the high half's; of N bytes an element.
template <int N, class V>
FASTRNN_INLINE V unpack_low(V a, V b) {
#ifdef FASTRNN_AVX512
  if constexpr (N == 4) return (V)_mm512_unpacklo_ps((__m512)a, (__m512)b);
  return (V)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
#else
  if constexpr (N == 4) return (V)_mm256_unpacklo_ps((__m256)a, (__m256)b);
  return (V)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
#endif
}
template <int N, class V>
FASTRNN_INLINE V unpack_high(V a, V b) {
#ifdef FASTRNN_AVX512
  if constexpr (N == 4) return (V)_mm512_unpackhi_ps((__m512)a, (__m512)b);
  return (V)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
#else
  if constexpr (N == 4) return (V)_mm256_unpackhi_ps((__m256)a, (__m256)b);
  return (V)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
#endif
}

// columns[j][i] = element j of row i, of W rows that lie `bytes` apart: half of the shuffles of transpose().
template <class T>
FASTRNN_INLINE void load_columns(typename Simd<T>::V (&columns)[Simd<T>::W], const char* rows, int64_t bytes) {
  using V = typename Simd<T>::V;
  constexpr int kPiece = 16, W = Simd<T>::W, kOf = kPiece / sizeof(T);  // elements of a piece
#pragma GCC unroll 4
  for (int first = 0; first < W; first += kOf) {
    V r[kOf];
#pragma GCC unroll 4
    for (int i = 0; i < kOf; ++i) {
      r[i] = load_pieces<T>(rows + i * bytes + first * static_cast<int64_t>(sizeof(T)), kOf * bytes);
    }
    if constexpr (kOf == 2) {
      columns[first] = unpack_low<8>(r[0], r[1]);
      columns[first + 1] = unpack_high<8>(r[0], r[1]);
    } else {
      const V low[] = {unpack_low<4>(r[0], r[1]), unpack_low<4>(r[2], r[3])};
      const V high[] = {unpack_high<4>(r[0], r[1]), unpack_high<4>(r[2], r[3])};
      columns[first] = unpack_low<8>(low[0], low[1]);
      columns[first + 1] = unpack_high<8>(low[0], low[1]);
      columns[first + 2] = unpack_low<8>(high[0], high[1]);
      columns[first + 3] = unpack_high<8>(high[0], high[1]);
    }
  }
}
#else
template <class T>
FASTRNN_INLINE void load_columns(typename Simd<T>::V (&columns)[Simd<T>::W], const char* rows, int64_t bytes) {
#pragma GCC unroll 16
  for (int i = 0; i < Simd<T>::W; ++i) columns[i] = Simd<T>::load(reinterpret_cast<const T*>(rows + i * bytes));
  transpose<T>(columns);
}
#endif

template <class T>
FASTRNN_INLINE T sum_lanes(typename Simd<T>::V v) {
#ifdef FASTRNN_AVX512
  if constexpr (sizeof(T) == 4) {
    return _mm512_reduce_add_ps((__m512)v);
  } else {
    return _mm512_reduce_add_pd((__m512d)v);
  }
#else
#if defined(FASTRNN_NEON)
  if constexpr (sizeof(T) == 4) {
    return vaddvq_f32((float32x4_t)v);
  } else {
    return vaddvq_f64((float64x2_t)v);
  }
#elif defined(FASTRNN_AVX2)
  if constexpr (sizeof(T) == 4) {
    const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
#endif
  T sum = v[0];
  for (int j = 1; j < Simd<T>::W; ++j) sum += v[j];
  return sum;
#endif
}

}  // namespace
}  // namespace fastrnn
