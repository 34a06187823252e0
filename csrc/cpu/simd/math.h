// Activations on whole registers: the math policy that csrc/cells/ asks for. NaN stays NaN (every
// clamp keeps its argument when the comparison is unordered).
#pragma once
#include "cpu/simd/lanes.h"

namespace fastrnn {
namespace {

template <class T>
struct VectorMath;

// log(1 / (1 + exp(-x))) = min(x, 0) - log(1 + e), e = exp(-|x|), and log(1 + e) = 2 atanh(s), s = e / (2 + e) of at
// most 1/3, by its series to s^last.
template <class M, int last, class V>
FASTRNN_INLINE V log_sigmoid_of(V x) {
  const V zero = M::set(0), low = x < zero ? x : zero;
  const V e = M::exp(x < zero ? x : -x);
  const V s = e / (M::set(2) + e), s2 = s * s;
  V sum = M::set(1.0 / last);
#pragma GCC unroll 16
  for (int k = last - 2; k > 0; k -= 2) sum = sum * s2 + M::set(1.0 / k);
  return low - (s + s) * sum;
}

template <>
struct VectorMath<float> {
  using S = Simd<float>;
  using V = S::V;
  using VInt = S::VInt;

  static FASTRNN_INLINE V set(double v) { return S::set(v); }
  static FASTRNN_INLINE V clamp(V x, float low, float high) { return S::min(set(high), S::max(set(low), x)); }

  static FASTRNN_INLINE V abs(V x) { return (V)((VInt)x & 0x7fffffff); }
  // |v|, v positive, with x's sign.
  static FASTRNN_INLINE V copy_sign(V v, V x) { return (V)((VInt)v | ((VInt)x & (VInt)S::set(-0.0))); }

  // 1/x: by division, or in AVX-512 to 14 bits, which with the Newton step below costs a third of it.
  static FASTRNN_INLINE V estimated_reciprocal(V x) {
#ifdef FASTRNN_AVX512
    return (V)_mm512_rcp14_ps((__m512)x);
#else
    return set(1) / x;
#endif
  }
  // 1/x to 0.5 ulp. The step adds what the estimate lacks, so that only its last rounding is of the whole.
  static FASTRNN_INLINE V reciprocal(V x) {
    const V r = estimated_reciprocal(x);
#ifdef FASTRNN_AVX512
    return r + r * (set(1) - x * r);
#else
    return r;
#endif
  }
  // 1 / (x + rest), rest being what x lost when it was rounded: to 0.5 ulp with fused multiply-adds, 1 without.
  static FASTRNN_INLINE V reciprocal(V x, V rest) {
    const V r = estimated_reciprocal(x);
#if defined(FASTRNN_AVX512) || defined(FASTRNN_AVX2) || defined(__aarch64__)
    return r + r * ((set(1) - x * r) - rest * r);
#else
    return r - (r * r) * rest;
#endif
  }

  // exp(k x) = scale * (1 + k tail), scale = 2^n, n = round(k x log2(e)), for |k x| < 88.
  //
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, and 127 more makes it an exponent. r = x -
  // n ln(2) / k is taken in two steps, the first of them exact since its constant has 15 bits: the error of one step
  // alone would grow with |x|. tail = (exp(k r) - 1) / k = r + r^2 p(r), p minimax of degree 4 on [-ln(2)/2k,
  // ln(2)/2k] (error 3e-9 against 1), so that roundings inside p hardly show. scale * tail is exact: whoever adds 1
  // to the exponential adds it to scale, and the sum is rounded once.
  template <int k>
  static FASTRNN_INLINE void exp_parts(V x, V& scale, V& tail) {
    const V magic = set(12582912.0 + 127);
    const V shifted = x * set(k * 1.44269504088896341) + magic;
    const V n = shifted - magic;
    V r = x - n * set(0.693145751953125 / k);
    r = r - n * set(1.42860682030941723212e-6 / k);
    V p = set(0.0013950600641275799 * k * k * k * k * k);
    p = p * r + set(0.008368953477708879 * k * k * k * k);
    p = p * r + set(0.041666204177811099 * k * k * k);
    p = p * r + set(0.16666518306400104 * k * k);
    p = p * r + set(0.50000000956778266 * k);
    tail = p * (r * r) + r;
    scale = (V)((VInt)shifted << 23);
  }

  // 1 / (1 + exp(-x)). The sum is a large part of the error, so what its roundings lost goes along. 0 where the
  // exponential is clamped, not what is left of it there: 0 * inf is NaN in a closed gate too.
  static FASTRNN_INLINE V sigmoid(V x) {
    V scale, tail;
    exp_parts<-1>(clamp(x, -88.0f, 87.0f), scale, tail);
    const V one_more = scale + set(1), sum = one_more - scale * tail;
    const V rest = ((one_more - sum) - scale * tail) + (set(1) - (one_more - scale));
    return x < set(-88) ? V{} : reciprocal(sum, rest);
  }

  // Odd: x + x^3 p(x^2) below 0.65 (minimax, error 7e-9), where the other form would cancel, and from there on
  // 1 - 2 / (exp(2|x|) + 1), which is exactly 1 from 9.02 on. Derivatives are 1 - y^2, and 2e-7 of a gradient that
  // has to vanish is too much where it meets an input of 1e6: saturated means exactly +-1.
  static FASTRNN_INLINE V tanh(V x) {
    const V magnitude = abs(x), x2 = x * x;
    V p = set(-0.00552863365468022);
    p = p * x2 + set(0.020483316025796264);
    p = p * x2 + set(-0.053692967957745237);
    p = p * x2 + set(0.13330899758292031);
    p = p * x2 + set(-0.33333262882029473);
    const V small = (p * x2) * x + x;
    V scale, tail;
    exp_parts<2>(S::min(set(10), magnitude), scale, tail);
    const V large = set(1) - reciprocal((scale * set(0.5) + set(0.5)) + scale * tail);
    return magnitude < set(0.65) ? small : copy_sign(large, x);
  }

  // exp(x) of x <= 0; 0 below -87.
  static FASTRNN_INLINE V exp(V x) {
    V scale, tail;
    exp_parts<1>(clamp(x, -87.0f, 0.0f), scale, tail);
    return x < set(-87) ? V{} : scale + scale * tail;
  }
  static FASTRNN_INLINE V log_sigmoid(V x) { return log_sigmoid_of<VectorMath, 15>(x); }

  static FASTRNN_INLINE V relu(V x) { return x < set(0) ? set(0) : x; }
  static FASTRNN_INLINE V positive_mask(V v, V d) { return v <= set(0) ? set(0) : d; }
};

template <>
struct VectorMath<double> {
  using S = Simd<double>;
  using V = S::V;
  using VInt = S::VInt;

  static FASTRNN_INLINE V set(double v) { return S::set(v); }
  static FASTRNN_INLINE V clamp(V x, double low, double high) { return S::min(set(high), S::max(set(low), x)); }

  // exp(x) = scale * (1 + tail): r in [-ln2/2, ln2/2], exp(r) - 1 by its Taylor series to r^13
  // (remainder below 1e-17).
  static FASTRNN_INLINE void exp_parts(V x, V& scale, V& tail) {
    const V magic = set(6755399441055744.0);
    const V shifted = x * set(1.4426950408889634074) + magic;
    const V n = shifted - magic;
    V r = x - n * set(6.93145751953125e-1);
    r = r - n * set(1.42860682030941723212e-6);
    V p = set(1.0 / 6227020800.0);
    p = p * r + set(1.0 / 479001600.0);
    p = p * r + set(1.0 / 39916800.0);
    p = p * r + set(1.0 / 3628800.0);
    p = p * r + set(1.0 / 362880.0);
    p = p * r + set(1.0 / 40320.0);
    p = p * r + set(1.0 / 5040.0);
    p = p * r + set(1.0 / 720.0);
    p = p * r + set(1.0 / 120.0);
    p = p * r + set(1.0 / 24.0);
    p = p * r + set(1.0 / 6.0);
    p = p * r + set(0.5);
    tail = p * (r * r) + r;
    scale = (V)(((VInt)shifted << 52) + 0x3ff0000000000000LL);
  }

  static FASTRNN_INLINE V sigmoid(V x) {
    V scale, tail;
    exp_parts(clamp(-x, -708.0, 708.0), scale, tail);
    const V s = set(1) / (set(1) + (scale + scale * tail));
    return x < set(-708) ? V{} : s;  // as in float
  }

  // e / (e + 2) with e = exp(2x) - 1, which keeps the relative accuracy at small x.
  static FASTRNN_INLINE V tanh(V x) {
    V scale, tail;
    exp_parts(clamp(x + x, -40.0, 40.0), scale, tail);
    const V e = scale * tail + (scale - set(1));
    return e / (e + set(2));
  }

  // exp(x) of x <= 0; 0 below -708.
  static FASTRNN_INLINE V exp(V x) {
    V scale, tail;
    exp_parts(clamp(x, -708.0, 0.0), scale, tail);
    return x < set(-708) ? V{} : scale + scale * tail;
  }
  static FASTRNN_INLINE V log_sigmoid(V x) { return log_sigmoid_of<VectorMath, 33>(x); }

  static FASTRNN_INLINE V relu(V x) { return x < set(0) ? set(0) : x; }
  static FASTRNN_INLINE V positive_mask(V v, V d) { return v <= set(0) ? set(0) : d; }
};

}  // namespace
}  // namespace fastrnn
