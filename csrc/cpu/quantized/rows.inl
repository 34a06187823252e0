// Left operands of quantized products: rows of float32 as the products read them.
#pragma once
#include "cpu/quantized/weights.h"
#include "cpu/simd/register.h"

namespace fastrnn {
namespace {

// K numbers as int8, q = round(v / scale) with scale = largest magnitude / 127, and zeros up to a whole group of
// columns; returns the scale. Where one of them is infinite or NaN there is no such scale: then it is NaN, and so is
// all that the row is multiplied with. Magnitudes that are all below 1e-30 are nothing.
FASTRNN_INLINE float quantize_row(const float* from, int64_t K, int8_t* to) {
  using S = Simd<float>;
  constexpr int W = S::W;
  typedef int8_t Bytes __attribute__((vector_size(W)));
  S::VInt most{};
  for (int64_t k = 0; k < K; k += W) {
    const S::VInt bits = (S::VInt)S::load_n(from + k, static_cast<int>(min_of<int64_t>(W, K - k))) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  int32_t largest = most[0];
  for (int j = 1; j < W; ++j) largest = max_of<int32_t>(largest, most[j]);
  const float magnitude = bits_to_float(static_cast<uint32_t>(largest));
  const bool finite = largest < 0x7f800000, something = finite && magnitude >= 1e-30f;
  const S::V factor = S::set(something ? 127 / magnitude : 0), magic = S::set(12582912.0);  // 1.5 * 2^23 rounds
  const int64_t padded = QuantizedWeights::groups_of(K, Storage::kInt8) * 4;
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    S::VInt rounded = (S::VInt)(S::load(from + k) * factor + magic);
    if (!something) rounded = S::VInt{};
    const Bytes bytes = __builtin_convertvector(rounded & 0xff, Bytes);
    __builtin_memcpy(to + k, &bytes, W);
  }
  if (k < padded) {
    S::VInt rounded = (S::VInt)(S::load_n(from + k, static_cast<int>(max_of<int64_t>(0, K - k))) * factor + magic);
    if (!something) rounded = S::VInt{};
    const Bytes bytes = __builtin_convertvector(rounded & 0xff, Bytes);
    __builtin_memcpy(to + k, &bytes, padded - k);
  }
  return something ? magnitude / 127 : finite ? 0 : __builtin_nanf("");
}

// The same for weights of bfloat16, whose products are of float32.
FASTRNN_INLINE float quantize_row(const float* from, int64_t K, float* to) {
  __builtin_memcpy(to, from, static_cast<size_t>(K) * sizeof(float));
  for (int64_t k = K; k < QuantizedWeights::groups_of(K, Storage::kBFloat16) * 2; ++k) to[k] = 0;
  return 1;
}

}  // namespace
}  // namespace fastrnn
