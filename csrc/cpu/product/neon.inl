// The tiles of tile.inl on NEON. What a processor for aarch64 has and the vector extensions have no word for is the
// multiply-add by element: a vector times one lane of another. So a register holds W consecutive elements of a row of
// the left operand, as they lie in its blocks, and no broadcast is ever made: 6 x 4 takes 24 accumulators, six
// registers of the left operand and one or two of the right one, all of the 32 there are.
//
// A step of a 6 x 4 tile is 24 multiply-adds, 4 loads of the right operand and a load and a half of the left one, so
// that with two pipes for arithmetic and two for loads (Cortex-A76, Neoverse N1) or four and three (Neoverse V1, V2,
// Apple's) the multiply-adds are the limit by a factor of 3.
//
// Instructions by name, in the order in which they are written: a compiler's scheduler moves the loads of several
// steps ahead of them, and spills.
#pragma once
#include "cpu/simd/register.h"

namespace fastrnn {
namespace {

constexpr int kNeonRegisters = 32;

// acc += b * a[lane].
template <class T, int lane>
FASTRNN_INLINE void multiply_add_lane(typename Simd<T>::V& acc, typename Simd<T>::V b, typename Simd<T>::V a) {
  if constexpr (sizeof(T) == 4) {
    asm("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(acc) : "w"(b), "w"(a), "i"(lane));
  } else {
    asm("fmla %0.2d, %1.2d, %2.d[%3]" : "+w"(acc) : "w"(b), "w"(a), "i"(lane));
  }
}

// The element at p in lane 0, by a load alone.
template <class T>
FASTRNN_INLINE typename Simd<T>::V load_lane(const T* p) {
  typename Simd<T>::V v;
  if constexpr (sizeof(T) == 4) {
    asm("ldr %s0, %1" : "=w"(v) : "m"(*p));
  } else {
    asm("ldr %d0, %1" : "=w"(v) : "m"(*p));
  }
  return v;
}

// The same for a lane that is a constant once a loop is unrolled.
template <class T>
FASTRNN_INLINE void multiply_add_lane(int lane, typename Simd<T>::V& acc, typename Simd<T>::V b,
                                      typename Simd<T>::V a) {
  if (lane == 0) multiply_add_lane<T, 0>(acc, b, a);
  if (lane == 1) multiply_add_lane<T, 1>(acc, b, a);
  if constexpr (Simd<T>::W > 2) {
    if (lane == 2) multiply_add_lane<T, 2>(acc, b, a);
    if (lane == 3) multiply_add_lane<T, 3>(acc, b, a);
  }
}

// A compiler that sees the loop over blocks beside the tile's loads and stores would keep the tile in registers from
// block to block, and the accumulators need them all.
FASTRNN_INLINE void forget_tile() { asm volatile("" ::: "memory"); }

// ProductKernel of tile.inl: sums of kBlock terms in kChains sets of accumulators.
template <class T, int MR, int NV, int kChains, int64_t kBlock>
void neon_product(T* tile, const T* from, int64_t from_row, const T* a, int64_t block_stride, const T* b, int64_t ld,
                  int64_t K, const char* ahead) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W;
  // Where there is no room for a register of each row, the left operand is read an element at a time, and the right
  // one stays.
  constexpr bool kWholeRows = (kChains * NV + 1) * MR + 2 <= kNeonRegisters;
  const int64_t ahead_step = ahead ? 64 : 0;
  if (!ahead) ahead = reinterpret_cast<const char*>(b);
  int64_t k = 0;
#pragma GCC unroll 1
  do {
    const int64_t end = min_of(K, k + kBlock);
    V sums[kChains][MR][NV];
#pragma GCC unroll 4
    for (int s = 0; s < kChains; ++s) {
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sums[s][m][v] = V{};
      }
    }
    // One term of all sums, with the right operand in registers.
    const auto by_element = [&](V(&acc)[MR][NV], const T* column) __attribute__((always_inline)) {
      V right[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) right[v] = S::load(b + v * W);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const V left = load_lane(column + m * W);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) multiply_add_lane<T, 0>(acc[m][v], right[v], left);
      }
    };
#pragma GCC unroll 1
    for (; k + W <= end; k += W, a += block_stride) {
      if constexpr (kChains == 1) {
        // The blocks of the left operand lie far apart, where no hardware prefetcher looks for them.
#pragma GCC unroll 2
        for (int m = 0; m < MR; m += 64 / static_cast<int>(sizeof(V)))
          __builtin_prefetch(a + 2 * block_stride + m * W);
#pragma GCC unroll 4
        for (int i = 0; i < W; ++i, ahead += ahead_step) __builtin_prefetch(ahead, 0, 2);
      }
      if constexpr (kWholeRows) {
        V rows[MR];
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) rows[m] = S::load(a + m * W);
#pragma GCC unroll 4
        for (int i = 0; i < W; ++i, b += ld) {
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            const V right = S::load(b + v * W);
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) multiply_add_lane<T>(i, sums[i % kChains][m][v], right, rows[m]);
          }
        }
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < W; ++i, b += ld) by_element(sums[i % kChains], a + i);
      }
    }
#pragma GCC unroll 1
    for (; k < end; ++k, ++a, b += ld) by_element(sums[0], a);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        V sum = sums[0][m][v];
        if constexpr (kChains == 2) sum += sums[1][m][v];
        if constexpr (kChains == 4) sum = (sum + sums[1][m][v]) + (sums[2][m][v] + sums[3][m][v]);
        S::store(tile + (m * NV + v) * W, S::load(from + m * from_row + v * W) + sum);
      }
    }
    from = tile;
    from_row = NV * W;
    forget_tile();
  } while (k < K);
}

// TransposedKernel of tile.inl: sums of kBlock rows. No block of the left operand has more than W columns.
template <class T, int MR, int NV, int64_t kBlock>
void neon_transposed(T* tile, const T* a, const T* b, int64_t rows) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W;
  static_assert(MR <= W);
#pragma GCC unroll 1
  for (int64_t r = 0; r < rows;) {
    const int64_t end = min_of(rows, r + kBlock);
    V sums[MR][NV];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[m][v] = V{};
    }
#pragma GCC unroll 1
    for (; r < end; ++r, a += W, b += NV * W) {
      if constexpr (MR == W) {  // a whole block
        const V left = S::load(a);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const V right = S::load(b + v * W);
#pragma GCC unroll 4
          for (int m = 0; m < MR; ++m) multiply_add_lane<T>(m, sums[m][v], right, left);
        }
      } else {
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) {
          const V left = load_lane(a + m);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) multiply_add_lane<T, 0>(sums[m][v], S::load(b + v * W), left);
        }
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        S::store(tile + (m * NV + v) * W, S::load(tile + (m * NV + v) * W) + sums[m][v]);
      }
    }
    forget_tile();
  }
}

}  // namespace
}  // namespace fastrnn
