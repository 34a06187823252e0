// Activations on whole registers: the math policy that csrc/cells/ asks for. NaN stays NaN (every
// clamp keeps its argument when the comparison is unordered).
#pragma once
#include "cpu/simd/register.h"

namespace fastrnn {
namespace {

template <class T>
struct VectorMath;

template <>
struct VectorMath<float> {
  using S = Simd<float>;
  using V = S::V;
  using VInt = S::VInt;

  static FASTRNN_INLINE V set(double v) { return S::set(v); }
  static FASTRNN_INLINE V clamp(V x, float low, float high) { return S::min(set(high), S::max(set(low), x)); }

  // 1/x to about 1 ulp: an estimate and one Newton step cost a third of a division.
  static FASTRNN_INLINE V reciprocal(V x) {
#ifdef FASTRNN_AVX512
    const V r = (V)_mm512_rcp14_ps((__m512)x);
    return r * (set(2) - x * r);
#else
    return set(1) / x;
#endif
  }

  // 2^y by 2^n * 2^f, n = round(y): f in [-1/2, 1/2] and a minimax polynomial of degree 6 (relative
  // error 2e-9 before rounding). Adding 1.5 * 2^23 rounds to an integer and leaves it in the low
  // bits. y = x log2(e) is rounded once, in the multiply-add that subtracts n, which costs exp(x) a
  // relative error of |x| * 3e-8: nothing that a sigmoid shows.
  static FASTRNN_INLINE V exp(V x) {
    x = clamp(x, -87.3f, 88.0f);
    const V log2e = set(1.44269504088896341), magic = set(12582912.0);
    const V shifted = x * log2e + magic;
    const V n = shifted - magic;
    const V f = x * log2e - n;
    V p = set(1.535336188319500e-4);
    p = p * f + set(1.339887440266574e-3);
    p = p * f + set(9.618437357674640e-3);
    p = p * f + set(5.550332471162809e-2);
    p = p * f + set(2.402264791363012e-1);
    p = p * f + set(6.931472028550421e-1);
    p = p * f + set(1);
#ifdef FASTRNN_AVX512
    return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return p * (V)(((VInt)shifted << 23) + 0x3f800000);
#endif
  }

  // 0 where exp(-x) is clamped, and not what is left of it there: 0 * inf is NaN in a closed gate too.
  static FASTRNN_INLINE V sigmoid(V x) {
    const V s = reciprocal(set(1) + exp(-x));
    return x < set(-88) ? V{} : s;
  }

  // Rational minimax approximation, degree 13 over 6, on [-7.9, 7.9]; beyond it tanh rounds to +-1.
  static FASTRNN_INLINE V tanh(V x) {
    x = clamp(x, -7.90531110763549805f, 7.90531110763549805f);
    const V x2 = x * x;
    V p = set(-2.76076847742355e-16);
    p = p * x2 + set(2.00018790482477e-13);
    p = p * x2 + set(-8.60467152213735e-11);
    p = p * x2 + set(5.12229709037114e-08);
    p = p * x2 + set(1.48572235717979e-05);
    p = p * x2 + set(6.37261928875436e-04);
    p = p * x2 + set(4.89352455891786e-03);
    V q = set(1.19825839466702e-06);
    q = q * x2 + set(1.18534705686654e-04);
    q = q * x2 + set(2.26843463243900e-03);
    q = q * x2 + set(4.89352518554385e-03);
    return x * p * reciprocal(q);
  }

  static FASTRNN_INLINE V relu(V x) { return x < set(0) ? set(0) : x; }
  static FASTRNN_INLINE V positive_mask(V v, V d) { return v > set(0) ? d : set(0); }
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

  static FASTRNN_INLINE V relu(V x) { return x < set(0) ? set(0) : x; }
  static FASTRNN_INLINE V positive_mask(V v, V d) { return v > set(0) ? d : set(0); }
};

}  // namespace
}  // namespace fastrnn
