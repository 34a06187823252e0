// The tiles of AMX for bfloat16 products: 16 rows by up to four vectors of W = 16 sums, each vector a tile of its
// own.
//
// A panel of pairs [K/2][vectors*W][2] (operand.inl) is a right operand as it lies: a row of a tile is one vector of
// pairs, and 64 * vectors bytes further comes the next. A left operand in blocks [K/W][rows][W] gives tiles of W
// columns, half of what one could hold. For the gradient of a weight, which multiplies the left operand by its rows,
// join_rows makes tiles of it: of 32 rows of W units, W rows of 32.
//
// Compiled and run under an emulation of the six instructions (tests/harness), never on a processor that has them: so
// nothing here runs unless it is asked for by name.
#pragma once
#include "cpu/product/few_rows.inl"
#include "cpu/product/operand.inl"

namespace fastrnn {
namespace {

constexpr int kAmxRows = 16;       // rows of a tile at most
constexpr int kAmxRowBytes = 64;   // bytes of a row at most
constexpr int64_t kAmxDepth = 32;  // bfloat16 of a row at most

// What LDTILECFG reads.
struct alignas(64) AmxShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int of_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(of_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
  // The sums' tiles come first, one a vector.
  void set_sums(int of_rows, int vectors) {
    for (int v = 0; v < vectors; ++v) set(v, of_rows, kAmxRowBytes);
  }
};
static_assert(sizeof(AmxShapes) == 64);

// Tiles of operands: of whole blocks, and of what is left of K.
enum : int { kAmxLeft = 4, kAmxRight = 5, kAmxLastLeft = 6, kAmxLastRight = 7 };

FASTRNN_INLINE void amx_configure(const AmxShapes& shapes) {
  asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
}
FASTRNN_INLINE void amx_release() { asm volatile("tilerelease" : : : "memory"); }

template <int tile>
FASTRNN_INLINE void amx_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
FASTRNN_INLINE void amx_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
}
// sums += left * right: a row's pairs times the pairs of the right operand's rows.
template <int sums, int left, int right>
FASTRNN_INLINE void amx_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(left), "i"(right) : "memory");
}

// f.template operator()<v>() for v < NV.
template <int NV, int v = 0, class F>
FASTRNN_INLINE void amx_each(F&& f) {
  f.template operator()<v>();
  if constexpr (v + 1 < NV) amx_each<NV, v + 1>(f);
}

// Adds to the sums what `left` points at times `vectors` tiles of the panel at b.
template <int NV, int kLeft, int kRight>
FASTRNN_INLINE void amx_multiply(const void* left, int64_t stride, const uint16_t* b) {
  amx_load<kLeft>(left, stride);
  amx_each<NV>([&]<int v>() __attribute__((always_inline)) {
    amx_load<kRight>(b + v * 32, NV * kAmxRowBytes);
    amx_dot<v, kLeft, kRight>();
  });
}

// tile[m][v] += sum over K of A[m][k] * B[k][v]. A is in pieces of `depth` columns, the next of a row `piece`
// elements further, the next row of a piece 2 * depth bytes.
template <int NV>
void amx_kernel(int rows, float* tile, const uint16_t* a, int64_t piece, int64_t depth, const uint16_t* b,
                int64_t K) {
  AmxShapes shapes;
  shapes.set_sums(rows, NV);
  const int bytes = static_cast<int>(2 * depth), last = static_cast<int>((K % depth + 1) / 2);
  shapes.set(kAmxLeft, rows, bytes);
  shapes.set(kAmxRight, static_cast<int>(depth / 2), kAmxRowBytes);
  if (last) {
    shapes.set(kAmxLastLeft, rows, 4 * last);
    shapes.set(kAmxLastRight, last, kAmxRowBytes);
  }
  amx_configure(shapes);
  const int64_t row = NV * kAmxRowBytes;
  amx_each<NV>([&]<int v>() __attribute__((always_inline)) { amx_load<v>(tile + v * 16, row); });
  for (; K >= depth; K -= depth, a += piece, b += depth / 2 * NV * 32) {
    amx_multiply<NV, kAmxLeft, kAmxRight>(a, bytes, b);
  }
  if (last) amx_multiply<NV, kAmxLastLeft, kAmxLastRight>(a, bytes, b);
  amx_each<NV>([&]<int v>() __attribute__((always_inline)) { amx_store<v>(tile + v * 16, row); });
  amx_release();
}

using AmxKernel = void (*)(int rows, float* tile, const uint16_t* a, int64_t piece, int64_t depth, const uint16_t* b,
                           int64_t K);
constexpr AmxKernel kAmxKernelsOf[kMaxVectors] = {amx_kernel<1>, amx_kernel<2>, amx_kernel<3>, amx_kernel<4>};

struct AmxOperand : Bf16Operand {
  static constexpr int W = S::W;
  static_assert(W == 16 && kPanelVectors <= 4);
  static constexpr int kTileSize = kAmxRows * kMaxVectors;
  static constexpr int tile_rows(int /*vectors*/) { return kAmxRows; }

  // Whole tiles of rows, an odd number of them.
  static FASTRNN_INLINE int64_t spread(int64_t rows) { return kAmxDepth * spread_rows(ceil_div(rows, kAmxDepth)); }

  static FASTRNN_INLINE void multiply(int rows, int vectors, float* tile, const E* a, int64_t block_stride,
                                      const E* b, int64_t K, const char* /*ahead*/) {
    kAmxKernelsOf[vectors - 1](rows, tile, a, block_stride, W, b, K);
  }
  static FASTRNN_INLINE void multiply(int rows, int vectors, float* tile, const E* a, int64_t block_stride,
                                      const E* b, int64_t /*ld*/, int64_t K, const char* ahead) {
    multiply(rows, vectors, tile, a, block_stride, b, K, ahead);
  }

  // [M][W] -> [M/32][W][32], zeros behind the last row.
  static void join_rows(E* block, int64_t rows) {
    for (int64_t r = rows; r % kAmxDepth; ++r) store(block + r * W, S::V{});
    for (int64_t r = 0; r < rows; r += kAmxDepth, block += kAmxDepth * W) {
      S::V pairs[W];
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) {
        fastrnn::join_rows(block + 2 * j * W);
        pairs[j] = (S::V)_mm512_loadu_si512(block + 2 * j * W);
      }
      transpose<float>(pairs);  // a pair is as wide as a float
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) _mm512_storeu_si512(block + 2 * j * W, (__m512i)pairs[j]);
    }
  }
  static FASTRNN_INLINE void multiply_transposed(int rows, int vectors, float* tile, const E* a, int64_t m0,
                                                 const E* b, int64_t count) {
    kAmxKernelsOf[vectors - 1](rows, tile, a + m0 * kAmxDepth, kAmxDepth * W, kAmxDepth, b, count);
  }
  static S::V sum_rows(const E* a, int64_t count) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    S::V sums[W] = {};
    for (int64_t r = 0; r < count; r += kAmxDepth, a += kAmxDepth * W) {
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) {
        const __m512bh rows = (__m512bh)_mm512_loadu_si512(a + j * kAmxDepth);
        sums[j] = (S::V)_mm512_dpbf16_ps((__m512)sums[j], rows, ones);
      }
    }
    return fastrnn::sum_rows<float>(sums);
  }
};

}  // namespace
}  // namespace fastrnn
