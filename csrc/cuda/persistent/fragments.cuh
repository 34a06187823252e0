// How each precision lays the products' operands over the lanes of a warp, and the functions of its cells.
//
// A product is S (16 units x 8 rows) += A (16 x 16) B (16 x 8): A weights, for one tile of units and one of K; B
// the exchanged values (h, or the gates' gradient) of K for 8 rows of the batch. lane = 4*g + c, g < 8, c < 4.
//
// Row i of A, so of S, is unit 2*(i%8) + i/8 of its tile: a lane's sums sum[2*p + j] then are those of the
// neighbouring units 2*g + p (p < 2) in rows 2*c + j (j < 2), which it loads and stores as pairs.
//
// K is in the order of the units, but a lane's values of it are the four neighbours 4*c to 4*c + 3, of A as of B: a
// sum knows no order. So what a lane holds of A is a block of the matrix (weights.cuh), and its words of B are those
// of two neighbouring pairs.
//
// B of a tile lies in memory as [lane][kWords], so that a lane reads its words at once; write() puts a lane's
// own four values of a tile there.
#pragma once
#include "cuda/persistent/memory.cuh"
#include "cuda/persistent/ptx.cuh"
#include "plan/tiles.h"

namespace fastrnn::cuda {

template <Precision precision>
struct Fragments;

template <class T, Precision precision>
struct HalfFragments {
  using Type = T;
  static constexpr Precision kPrecision = precision;
  static constexpr int kWords = 2, kRegisters = 4;
  using Words = uint2;

  // A's registers in place of a lane's block of weights: register r has two values of unit 2*g + (r&1), of
  // k = 4*c + 2*(r>>1) and the next. Transposed, the block's rows are the k.
  template <bool transposed>
  static __device__ __forceinline__ void arrange(uint32_t (&a)[kRegisters]) {
    const uint32_t block[4] = {a[0], a[1], a[2], a[3]};
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint32_t k0 = block[2 * pair], k1 = block[2 * pair + 1];
      a[2 * pair] = transposed ? (k0 & 0xffffu) | k1 << 16 : block[pair];
      a[2 * pair + 1] = transposed ? k0 >> 16 | (k1 & 0xffff0000u) : block[2 + pair];
    }
  }
  // What a lane multiplies of row lane>>2: its values 4*c and the next, 4*c + 2 and the next.
  static __device__ __forceinline__ Words words(const Pair<Type>& low, const Pair<Type>& high) {
    return make_uint2(low.raw, high.raw);
  }
  static __device__ __forceinline__ void write(uint32_t* tile, int lane, const Pair<Type> (&rows)[2]) {
    const int g = lane >> 2, c = lane & 3;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      tile[((2 * c + j) * 4 + (g >> 1)) * kWords + (g & 1)] = rows[j].raw;
    }
  }
  // The same over the lanes: each gets the words of one lane, `target`, whole. All lanes call it.
  static __device__ __forceinline__ Words gather(int lane, const Pair<Type> (&rows)[2], int& target) {
    const int g = lane >> 2, c = lane & 3, j = g & 1;
    target = (2 * c + j) * 4 + (g >> 1);
    const uint32_t other = __shfl_xor_sync(~0u, j ? rows[0].raw : rows[1].raw, 4);
    return j ? make_uint2(other, rows[1].raw) : make_uint2(rows[0].raw, other);
  }
};

template <>
struct Fragments<Precision::kBFloat16> : HalfFragments<__nv_bfloat16, Precision::kBFloat16> {
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint2 b) {
    mma_bf16(sum, a, b.x, b.y);
  }
};

template <>
struct Fragments<Precision::kHalf> : HalfFragments<__half, Precision::kHalf> {
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint2 b) {
    mma_f16(sum, a, b.x, b.y);
  }
};

template <bool rounded>
struct FloatFragments {
  using Type = float;
  static constexpr int kWords = 4, kRegisters = 8;
  using Words = uint4;

  // Two products of 8 values of K: register 4*q + r holds k = 4*c + 2*q + (r>>1) of unit 2*g + (r&1). So a product's
  // two words of B are neighbours, as its instruction wants them.
  template <bool transposed>
  static __device__ __forceinline__ void arrange(uint32_t (&a)[kRegisters]) {
    uint32_t block[kRegisters];
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) block[i] = a[i];
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) {
      const int k = 2 * (i >> 2) + (i >> 1 & 1), unit = i & 1;
      const uint32_t w = block[transposed ? 2 * k + unit : 4 * unit + k];
      a[i] = rounded ? to_tf32(__uint_as_float(w)) : with_plain_nan(w);
    }
  }
  static __device__ __forceinline__ Words words(const Pair<Type>& low, const Pair<Type>& high) {
    const uint2 first = words_of_row(low), second = words_of_row(high);
    return make_uint4(first.x, first.y, second.x, second.y);
  }
  static __device__ __forceinline__ void write(uint32_t* tile, int lane, const Pair<Type> (&rows)[2]) {
    const int g = lane >> 2, c = lane & 3;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      *reinterpret_cast<uint2*>(tile + ((2 * c + j) * 4 + (g >> 1)) * kWords + 2 * (g & 1)) = words_of_row(rows[j]);
    }
  }
  static __device__ __forceinline__ Words gather(int lane, const Pair<Type> (&rows)[2], int& target) {
    const int g = lane >> 2, c = lane & 3, j = g & 1;
    target = (2 * c + j) * 4 + (g >> 1);
    const uint2 first = words_of_row(rows[0]), second = words_of_row(rows[1]);
    const uint32_t x = __shfl_xor_sync(~0u, j ? first.x : second.x, 4);
    const uint32_t y = __shfl_xor_sync(~0u, j ? first.y : second.y, 4);
    return j ? make_uint4(x, y, second.x, second.y) : make_uint4(first.x, first.y, x, y);
  }
  // The NaN that split_weight() keeps one, for every other.
  static __device__ __forceinline__ uint32_t with_plain_nan(uint32_t w) {
    return w << 1 > 0xff000000u ? 0x7fc00000u : w;
  }
  static __device__ __forceinline__ uint2 words_of_row(const Pair<Type>& row) {
    return rounded ? make_uint2(to_tf32(row[0]), to_tf32(row[1])) : row.raw;
  }
};

template <>
struct Fragments<Precision::kTf32> : FloatFragments<true> {
  static constexpr Precision kPrecision = Precision::kTf32;
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[8], uint4 b) {
    mma_tf32(sum, a, b.x, b.y);
    mma_tf32(sum, a + 4, b.z, b.w);
  }
};

// Each operand as a sum of two TF32 numbers, 22 bits in all; the product of the two low parts is below
// float's last bit. The small terms first.
template <>
struct Fragments<Precision::kFloat32> : FloatFragments<false> {
  static constexpr Precision kPrecision = Precision::kFloat32;
  static __device__ __forceinline__ void split(uint32_t word, uint32_t& high, uint32_t& low) {
    const float v = __uint_as_float(word);
    high = to_tf32(v);
    low = to_tf32(v - __uint_as_float(high));
  }
  // The parts of a weight are the same at every step, but have no registers to wait in. Rounded as to_tf32 does, but
  // for what it asks of every number: infinity stays what it is, and arrange() left no NaN that would become 0.
  static __device__ __forceinline__ void split_weight(uint32_t word, uint32_t& high, uint32_t& low) {
    forget(word);
    high = (word + 0x1000u) & 0xffffe000u;
    const float rest = __uint_as_float(word) - __uint_as_float(high);  // of an infinity NaN, or 0: either will do
    low = (__float_as_uint(rest) + 0x1000u) & 0xffffe000u;
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[8], uint4 b) {
    const uint32_t words[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
      for (int r = 0; r < 4; ++r) split_weight(a[4 * q + r], a_high[r], a_low[r]);
#pragma unroll
      for (int r = 0; r < 2; ++r) split(words[2 * q + r], b_high[r], b_low[r]);
      mma_tf32(sum, a_low, b_high[0], b_high[1]);
      mma_tf32(sum, a_high, b_low[0], b_low[1]);
      mma_tf32(sum, a_high, b_high[0], b_high[1]);
    }
  }
};

// The math policies of csrc/cells for half types and TF32: a relative error of about 1e-6. Where a function has
// converged, the approximate reciprocal of 1 must not decide whether the result is exactly 1 (see cells/cell.h).
struct FastMath {
  using V = float;
  static FASTRNN_HD V set(double v) { return static_cast<V>(v); }
  static __device__ __forceinline__ V sigmoid(V v) {
    const float d = 1.0f + exp2_approx(-1.4426950408889634f * v);
    return d == 1.0f ? 1.0f : reciprocal_approx(d);
  }
  // 1 - 2/(1 + e^2|v|) cancels near zero: there the series, whose next term is 62/2835 v^9.
  static __device__ __forceinline__ V tanh(V v) {
    const float s = v * v;
    const float small = v * fmaf(s, fmaf(s, fmaf(s, -17.0f / 315, 2.0f / 15), -1.0f / 3), 1.0f);
    const float e = exp2_approx(2.8853900817779268f * fabsf(v));
    const float large = copysignf(fmaf(-2.0f, reciprocal_approx(1.0f + e), 1.0f), v);
    return s < 0.0625f ? small : large;
  }
  static FASTRNN_HD V relu(V v) { return v < 0 ? 0 : v; }  // NaN stays NaN, as in torch
  static FASTRNN_HD V positive_mask(V v, V d) { return v <= 0 ? 0 : d; }
};

// bfloat16 keeps 8 bits, tanh.approx has 11: one instruction, but where tanh has converged in float. Not for the
// gates: 2.4e-4 is much of one that is nearly closed, and what it lets through adds up over the steps.
struct ApproximateMath : FastMath {
  static __device__ __forceinline__ V tanh(V v) { return fabsf(v) >= 9.02f ? copysignf(1.0f, v) : tanh_approx(v); }
};

template <Precision precision>
using MathOf = std::conditional_t<precision == Precision::kBFloat16, ApproximateMath,
                                  std::conditional_t<precision == Precision::kFloat32, ScalarMath<float>, FastMath>>;

}  // namespace fastrnn::cuda
