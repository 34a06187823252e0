// Activations for one row of few units, where a step waits for them and not for arithmetic: half the latency of
// VectorMath's, and errors of up to 3e-7 where those have 6e-8 (tests/stream/test_quick_models.py). The math policy
// that csrc/cells/ asks for, of a pass without derivatives. A gate's saturation is exact, 0 or 1, and NaN stays NaN.
#pragma once
#include "cpu/simd/math.h"

namespace fastrnn {
namespace {

struct QuickMath : VectorMath<float> {
  // tanh(x) = x P(x^2) / Q(x^2) on [-kEnd, kEnd], minimax of the relative error (2.3e-8), P and Q of degree 4 with
  // coefficients that float32 holds exactly, all positive: no sum cancels. Each is three multiply-adds deep where
  // Horner's rule is four, both at the same time, and the 1 comes last, so that small x see one rounding of each.
  static constexpr double kEnd = 9.02;
  static constexpr double kP[] = {1.0, 0.1338268667459488, 0.003497486934065819, 2.0637662601075135e-05,
                                  1.3389380271178197e-08};
  static constexpr double kQ[] = {1.0, 0.46716007590293884, 0.025884391739964485, 0.0003288622829131782,
                                  7.79180311383243e-07};

  // The quotient for tanh(x * scale) / scale, the scale being a power of 2 that goes into the coefficients.
  template <int halvings>
  static FASTRNN_INLINE V quotient(V x) {
    constexpr double kScale = halvings ? 0.5 : 1, kSquare = kScale * kScale;
    const V y = clamp(x, static_cast<float>(-kEnd / kScale), static_cast<float>(kEnd / kScale));
    const V s = y * y, s2 = s * s;
    const auto sum = [&](const double (&c)[5], double factor) __attribute__((always_inline)) {
      const V low = s * set(c[2] * kSquare * kSquare * factor) + set(c[1] * kSquare * factor);
      const V high = s * set(c[4] * kSquare * kSquare * kSquare * kSquare * factor) +
                     set(c[3] * kSquare * kSquare * kSquare * factor);
      return s * (s2 * high + low) + set(c[0] * factor);
    };
    return y * sum(kP, kScale * kScale) / sum(kQ, 1);
  }

  static FASTRNN_INLINE V tanh(V x) { return quotient<0>(x); }
  // 1/2 + tanh(x / 2) / 2: the error is absolute, that of numbers near 1, beyond which it must not take a gate.
  static FASTRNN_INLINE V sigmoid(V x) { return clamp(quotient<1>(x), -0.5f, 0.5f) + set(0.5); }
};

}  // namespace
}  // namespace fastrnn
