// Register-tiled matrix products: the arithmetic core of every kernel here.
//
// A tile is up to tile_rows(NV) rows by NV vectors of accumulators that live in registers for the
// reduction. The left operand is read one scalar at a time (broadcast), the right one a vector at a
// time. A tile begins and ends in a small buffer that stays in the L1 cache, so these kernels are
// compiled once a shape of tile and know nothing of cells, which work on the buffer; loading and
// storing it costs 2 of the K multiply-adds of each accumulator.
//
// Every sum is made in blocks of at most kSumBlock terms that start from zero and are added to the tile
// when they end. A chain of n float additions is off by about sqrt(n / 2) roundings of its result, blocks
// of n of the N terms by sqrt((n + N / n) / 2) of them; and what the tile held before, which may be far
// larger than the terms (an input of 1e3 beside a state below 1), is rounded once a block instead of
// once a term.
//
// Blocked layout of a left operand with `rows` rows and K columns: [ceil(K/W)][rows][W]. One vector
// store writes a block of W units of a row, the rows of a tile lie on consecutive lines whatever K
// is (no power-of-two strides), and the same memory serves as the transposed operand of the weight
// gradients.
#pragma once
#include "cpu/simd/math.h"
#ifdef FASTRNN_NEON
#include "cpu/product/neon.inl"
#endif

namespace fastrnn {
namespace {

// Registers of this instruction set decide the tile: 24 accumulators of 32, or 12 of 16, leave room
// for a row of the right operand and a broadcast.
#if defined(FASTRNN_AVX512) || defined(__aarch64__)
constexpr int kRegisters = 32, kAccumulators = 24;
constexpr int kPanelVectors = 4;  // vectors a row of the right operand in general products
constexpr int kRnnUnits = 4;      // unit blocks a panel for a cell with one gate
#else
constexpr int kRegisters = 16, kAccumulators = 12;
constexpr int kPanelVectors = 2;  // 6 x 2 reaches the peak of AVX2, 3 x 4 stays at 80% of it
constexpr int kRnnUnits = 2;
#endif
#if defined(FASTRNN_AVX512) || defined(FASTRNN_AVX2) || defined(__aarch64__)
constexpr bool kMultiplyAdds = true;
#else
constexpr bool kMultiplyAdds = false;
#endif
constexpr int kMaxVectors = 4;
constexpr int kMaxRows = 8;
constexpr int kTileSize = 24;       // most vectors a tile holds
constexpr int64_t kSumBlock = 128;  // most terms of a chain of additions, a multiple of every W
constexpr int64_t kRowBlock = 32;   // the same for sums over rows and steps, of which there are more

// Gates of a unit that one tile holds. Four in 12 registers would leave three rows a tile, and no register for a row
// of the right operand beside its broadcast: two tiles of six rows and two gates each read less and spill nothing.
constexpr int gates_a_tile(int gates) { return kAccumulators == 24 || gates < 4 ? gates : gates / 2; }

constexpr int tile_rows(int vectors) {
  return kAccumulators / vectors < kMaxRows ? kAccumulators / vectors : kMaxRows;
}

// acc += a * b. By name where there are multiply-adds: of their three forms a compiler takes those that overwrite a
// factor too, and over an unrolled loop that makes copies of accumulators until it runs out of registers and spills.
template <class T>
FASTRNN_INLINE void multiply_add(typename Simd<T>::V& acc, typename Simd<T>::V a, typename Simd<T>::V b) {
#if defined(FASTRNN_AVX512)
  if constexpr (sizeof(T) == 4) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  } else {
    asm("vfmadd231pd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  }
#elif defined(FASTRNN_AVX2)
  if constexpr (sizeof(T) == 4) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
  } else {
    asm("vfmadd231pd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
  }
#elif defined(__x86_64__)
  const typename Simd<T>::V product = a * b;
  if constexpr (sizeof(T) == 4) {
    asm("addps %1, %0" : "+x"(acc) : "x"(product));
  } else {
    asm("addpd %1, %0" : "+x"(acc) : "x"(product));
  }
#else
  acc += a * b;
#endif
}
// A value is in a register from here on: a compiler that is free to would load the row of the right operand anew for
// each row of the tile, which a core with one load of 512 bits a cycle (Zen 4) pays for.
template <class V>
FASTRNN_INLINE void in_register([[maybe_unused]] V& value) {
#if defined(FASTRNN_AVX512)
  asm("" : "+v"(value));
#elif defined(FASTRNN_AVX2)
  asm("" : "+x"(value));
#endif
}
// A pointer that steps by a number unknown here is one register, added to: a compiler would keep one for each of
// several steps.
template <class P>
FASTRNN_INLINE void step(P*& pointer, int64_t by) {
  pointer += by;
  asm("" : "+r"(pointer));
}
// What lies in memory is read again after this: a compiler that sees the loop over blocks of terms beside the tile's
// loads and stores would keep the tile in registers from block to block, which the accumulators need.
FASTRNN_INLINE void forget_memory() { asm volatile("" ::: "memory"); }

// acc[m][v] += column[m * stride] * row_of_b[v], one term of every sum of a tile, of which kSets are held.
template <class T, int MR, int NV, int kSets = 1>
FASTRNN_INLINE void accumulate(typename Simd<T>::V (&acc)[MR][NV], const T* column, int stride, const T* row_of_b) {
  using S = Simd<T>;
  // Which is used once, or has no register: from where it lies.
  constexpr bool kInMemory = MR == 1 || (MR + 1) * NV >= kRegisters;
  constexpr bool kHeld = !kInMemory && (kSets * MR + 1) * NV + 1 < kRegisters;
  typename S::V row[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    row[v] = S::load(row_of_b + v * S::W);
    if constexpr (kHeld) in_register(row[v]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    T factor = column[m * stride];
#if defined(__x86_64__) && !defined(FASTRNN_AVX2) && !defined(FASTRNN_AVX512)
    if constexpr (MR > 1)
      asm("" : "+x"(factor));  // by itself: a vector of several, to be taken apart, would be one register too many
#endif
    const typename S::V broadcast = S::broadcast(factor);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      if constexpr (kInMemory) {
        acc[m][v] += broadcast * row[v];
      } else {
        multiply_add<T>(acc[m][v], broadcast, row[v]);
      }
    }
  }
}

// tile[m][v] = from[m][v] + sum over k in [0, K) of A[m][k] * B[k][v]. A is blocked: element (m, k) at
// a[(k / W) * block_stride + m * W + k % W]. B has rows of `ld` elements. `from` has rows of from_row elements, 0
// where they are all one (a bias), and may be the tile. `ahead` (or null) is brought into the cache on the way, a
// line every k: the panel that comes next, see PanelPrefetch.
template <class T>
using ProductKernel = void (*)(T* tile, const T* from, int64_t from_row, const T* a, int64_t block_stride, const T* b,
                               int64_t ld, int64_t K, const char* ahead);

// How many sets of accumulators share a block of K between them. A few rows leave too few independent
// chains to hide the latency of a multiply-add; more sets than there are registers would live in memory.
constexpr int chains_of(int tile, int lanes) {
  return lanes < 4 ? 1 : tile <= 4 && 4 * tile <= kAccumulators ? 4 : tile <= 8 && 2 * tile <= kAccumulators ? 2 : 1;
}

template <class T, int MR, int NV>
void product_kernel(T* tile, const T* from, int64_t from_row, const T* a, int64_t block_stride, const T* b,
                    int64_t ld, int64_t K, const char* ahead) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W;
  constexpr int kChains = chains_of(MR * NV, W);
  constexpr int kSteps = W < 4 ? W : 4;
  if (!ahead) ahead = reinterpret_cast<const char*>(b);  // what is in the cache costs nothing to fetch
  int64_t k = 0;
#pragma GCC unroll 1
  do {
    const int64_t end = min_of(K, k + kSumBlock);
    V sums[kChains][MR][NV];
#pragma GCC unroll 4
    for (int s = 0; s < kChains; ++s) {
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sums[s][m][v] = V{};
      }
    }
#pragma GCC unroll 1
    for (; k + W <= end; k += W, a += block_stride - W) {
      // The blocks of A lie far apart, where no hardware prefetcher looks for them.
      if constexpr (kChains == 1) {
        const T* next = a;
        step(next, 2 * block_stride);
#pragma GCC unroll 8
        for (int m = 0; m < MR; m += 64 / static_cast<int>(W * sizeof(T))) __builtin_prefetch(next + m * W);
      }
#pragma GCC unroll 1
      for (int kk = 0; kk < W; kk += kSteps, a += kSteps) {
#pragma GCC unroll 4
        for (int s = 0; s < kSteps; ++s, step(b, ld)) {
          if constexpr (kChains == 1) {
            __builtin_prefetch(ahead, 0, 2);
            step(ahead, 64);
          }
          accumulate<T, MR, NV, kChains>(sums[s % kChains], a + s, W, b);
        }
      }
    }
#pragma GCC unroll 1
    for (; k < end; ++k, ++a, step(b, ld)) accumulate<T, MR, NV, kChains>(sums[0], a, W, b);
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
    forget_memory();
  } while (k < K);
}

// product_kernel of one row and P panels of NV vectors at once, B_p at b + p * panel_stride, whose sums are at
// out + p * out_stride. With 16 registers: two vectors a panel would read the row's value as often as two of the
// weights, and in chains that hide an addition's latency nothing is left to share it (150 GB/s of 1 MB on a Zen 5,
// 175 with kRowPanels). Every sum is one chain whatever P is: which panels are left over for a call of fewer depends
// on where a worker's begin and which way it goes through them, and the bits of a step must not.
#if defined(FASTRNN_AVX512) || defined(__aarch64__)
constexpr int kRowPanels = 1;  // product_kernel, that is
#else
constexpr int kRowPanels = 4;
#endif
template <class T, int NV, int P>
__attribute__((noinline)) void row_kernel(T* out, int64_t out_stride, const T* a, int64_t block_stride, const T* b,
                                          int64_t panel_stride, int64_t K) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W, kSteps = W < 4 ? W : 4;
  const T* panels[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) panels[p] = b + p * panel_stride;
#pragma GCC unroll 1
  for (int64_t k = 0; k < K;) {
    const int64_t end = min_of(K, k + kSumBlock);
    V sums[P][NV];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[p][v] = V{};
    }
    // One term of every sum, `row` elements behind where the panels begin.
    const auto add = [&](T factor, int64_t row) __attribute__((always_inline)) {
      const V value = S::broadcast(factor);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sums[p][v] += value * S::load(panels[p] + row + v * W);
      }
    };
#pragma GCC unroll 1
    for (; k + W <= end; k += W, a += block_stride - W) {
#pragma GCC unroll 1
      for (int kk = 0; kk < W; kk += kSteps, a += kSteps) {
#pragma GCC unroll 4
        for (int s = 0; s < kSteps; ++s) add(a[s], s * NV * W);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) step(panels[p], kSteps * NV * W);
      }
    }
#pragma GCC unroll 1
    for (; k < end; ++k, ++a) {
      add(*a, 0);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) step(panels[p], NV * W);
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        T* to = out + p * out_stride + v * W;
        S::store(to, S::load(to) + sums[p][v]);
      }
    }
    forget_memory();
  }
}

template <class T, int NV>
void multiply_panels(int panels, T* out, int64_t out_stride, const T* a, int64_t block_stride, const T* b,
                     int64_t panel_stride, int64_t K) {
  switch (panels) {
    case 1:
      return row_kernel<T, NV, 1>(out, out_stride, a, block_stride, b, panel_stride, K);
    case 2:
      return row_kernel<T, NV, 2>(out, out_stride, a, block_stride, b, panel_stride, K);
    case 3:
      return row_kernel<T, NV, 3>(out, out_stride, a, block_stride, b, panel_stride, K);
    default:
      return row_kernel<T, NV, kRowPanels>(out, out_stride, a, block_stride, b, panel_stride, K);
  }
}

// tile[m][v] += sum over r of A[r][m] * B[r][v]: one block of a blocked operand, transposed; element
// (r, m) at a[r * W + m]; B has rows of NV * W elements.
template <class T>
using TransposedKernel = void (*)(T* tile, const T* a, const T* b, int64_t rows);

template <class T, int MR, int NV>
void transposed_kernel(T* tile, const T* a, const T* b, int64_t rows) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W;
  // Of steps that it sees a compiler makes a loop that copies accumulators: where the tile takes every register, with
  // a broadcast and without multiply-adds a product, until one goes to the stack (clang's 4x3 of AVX2, all of SSE's
  // 6x2).
  constexpr int kHeld = (MR + 1) * NV, kPassing = kMultiplyAdds ? 1 : 2;
  constexpr bool kEveryRegister = kHeld < kRegisters && kHeld + kPassing >= kRegisters;
#pragma GCC unroll 1
  for (int64_t r = 0; r < rows;) {
    const int64_t end = min_of(rows, r + kRowBlock);
    V acc[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = V{};
    }
#pragma GCC unroll 1
    for (; r < end; ++r) {
      accumulate<T, MR, NV>(acc, a, 1, b);
      if constexpr (kEveryRegister) {
        step(a, W);
        step(b, NV * W);
      } else {
        a += W;
        b += NV * W;
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        S::store(tile + (m * NV + v) * W, S::load(tile + (m * NV + v) * W) + acc[m][v]);
      }
    }
    forget_memory();
  }
}

// The kernels of every tile shape, by [vectors - 1][rows - 1].
template <class T>
struct Kernels {
  ProductKernel<T> product[kMaxVectors][kMaxRows];
  TransposedKernel<T> transposed[kMaxVectors][kMaxRows];

  template <int NV, int MR>
  constexpr void fill() {
    if constexpr (MR <= tile_rows(NV)) {
#ifdef FASTRNN_NEON
      product[NV - 1][MR - 1] = neon_product<T, MR, NV, chains_of(MR * NV, Simd<T>::W), kSumBlock>;
      if constexpr (MR <= Simd<T>::W) transposed[NV - 1][MR - 1] = neon_transposed<T, MR, NV, kRowBlock>;
#else
      product[NV - 1][MR - 1] = product_kernel<T, MR, NV>;
      transposed[NV - 1][MR - 1] = transposed_kernel<T, MR, NV>;
#endif
    }
    if constexpr (MR < kMaxRows) {
      fill<NV, MR + 1>();
    } else if constexpr (NV < kMaxVectors) {
      fill<NV + 1, 1>();
    }
  }
  constexpr Kernels() : product{}, transposed{} { fill<1, 1>(); }
};
template <class T>
constexpr Kernels<T> kKernels{};

template <class T>
FASTRNN_INLINE void multiply(int rows, int vectors, T* tile, const T* a, int64_t block_stride, const T* b, int64_t ld,
                             int64_t K, const char* ahead = nullptr) {
  kKernels<T>.product[vectors - 1][rows - 1](tile, tile, vectors * Simd<T>::W, a, block_stride, b, ld, K, ahead);
}
template <class T>
FASTRNN_INLINE void multiply_transposed(int rows, int vectors, T* tile, const T* a, const T* b, int64_t reduction) {
  kKernels<T>.transposed[vectors - 1][rows - 1](tile, a, b, reduction);
}

// Brings the panel that comes next into the cache, a slice with each row tile of the present one:
// where the weights are larger than the L2 cache, the first tile of a panel would otherwise wait for
// every line of it. A null or finished panel costs a prefetch of nothing.
struct PanelPrefetch {
  const char* next = nullptr;
  const char* end = nullptr;

  // The slice to prefetch while a tile runs through K.
  const char* slice(int64_t K) {
    if (next >= end) return nullptr;
    const char* slice = next;
    next += K * 64;
    return slice;
  }
};

// Cuts [begin, end) into tiles of at most max_rows rows of nearly equal height, since one row left
// over would cost as much as a whole tile: f(first_row, rows).
template <class F>
FASTRNN_INLINE void for_tiles(int max_rows, int64_t begin, int64_t end, F&& f) {
  const int64_t rows = end - begin;
  const int64_t tiles = (rows + max_rows - 1) / max_rows;
  int64_t row = begin;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t next = begin + rows * (i + 1) / tiles;
    f(row, static_cast<int>(next - row));
    row = next;
  }
}

}  // namespace
}  // namespace fastrnn
