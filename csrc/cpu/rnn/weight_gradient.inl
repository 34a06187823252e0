// Weight gradients of a chunk of steps: long sums over its rows, added to the natural gradient once a
// chunk.
#pragma once
#include "cpu/product/pack.inl"

namespace fastrnn {
namespace {

template <class T>
struct WeightGradient {
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int W = S::W;
  static constexpr int64_t kReductionRows = 1024;  // rows a pass: their panel stays in the L2 cache
  static constexpr int64_t kFewRows = 4;           // so few are summed without a tile

  int64_t rows;       // of the chunk
  int64_t left_rows;  // rows that the blocked left operand was allocated for
  bool first;         // the gradient is written, not added to
  Dtype right_dtype;
  T* buffer;  // buffer_size(rows) elements
  // Of each block of `left`, the units that count.
  int first_lane = 0, last_lane = W;

  static int64_t buffer_size(int64_t rows) { return min_of(kReductionRows, rows) * kPanelVectors * W; }

  // out[row][column] (+)= sum over the chunk's rows of left[row] * right[column], for blocks
  // [begin, end) of `left`. Block i is found at source(i); its W rows begin at natural row
  // (i / blocks) * length + (i % blocks) * W. The rows of `right` are natural: right_row(r).
  template <class Source, class RightRow>
  void add(const T* left, const Panels<T>& left_units, int64_t begin, int64_t end, Source&& source,
           const Panels<T>& columns, RightRow&& right_row, T* out) const {
    if (begin == end) return;
    const int64_t blocks = left_units.blocks();
    const auto natural = [&](int64_t i) {
      return out + (i / blocks * left_units.length + i % blocks * W) * columns.length;
    };
    if (first && rows <= kFewRows) {
      for (int64_t i = begin; i < end; ++i) {
        outer_product(left + source(i) * left_rows * W, min_of(last_lane, left_units.lanes(i % blocks)), columns,
                      right_row, natural(i));
      }
      return;
    }
    for (int64_t panel = 0; panel < columns.count(); ++panel) {
      const int64_t first_block = columns.first_block(panel);
      const int vectors = columns.blocks_of(panel);
      for (int64_t r0 = 0; r0 < rows; r0 += kReductionRows) {
        const int64_t reduction = min_of(kReductionRows, rows - r0);
        for (int64_t r = 0; r < reduction; ++r) {
          const char* from = right_row(r0 + r);
          for (int v = 0; v < vectors; ++v) {
            S::store(buffer + (r * vectors + v) * W,
                     load_as<T>(from, (first_block + v) * W, columns.lanes(first_block + v), right_dtype));
          }
        }
        for (int64_t i = begin; i < end; ++i) {
          const T* a = left + (source(i) * left_rows + r0) * W;
          T* to = natural(i) + first_block * W;
          const int lanes = min_of(last_lane, left_units.lanes(i % blocks));
          for_tiles(tile_rows(vectors), first_lane, lanes, [&](int64_t m, int height) {
            tile(a + m, reduction, to + m * columns.length, height, vectors, columns, first_block, first && r0 == 0);
          });
        }
      }
    }
  }

  // out[row] (+)= sum over the chunk's rows of left[row].
  template <class Source>
  void add_bias(const T* left, const Panels<T>& left_units, int64_t begin, int64_t end, Source&& source,
                T* out) const {
    const int64_t blocks = left_units.blocks();
    for (int64_t i = begin; i < end; ++i) {
      const int lanes = left_units.lanes(i % blocks);
      T* to = out + i / blocks * left_units.length + i % blocks * W;
      const T* a = left + source(i) * left_rows * W;
      V sum{};
      for (int64_t r = 0; r < rows;) {
        const int64_t end = min_of(rows, r + 4 * kRowBlock);
        V sums[4] = {};
        for (; r + 4 <= end; r += 4) {
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) sums[j] += S::load(a + (r + j) * W);
        }
        for (; r < end; ++r) sums[0] += S::load(a + r * W);
        sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
      }
      S::store_n(to, first ? sum : sum + S::load_n(to, lanes), lanes);
    }
  }

 private:
  void tile(const T* a, int64_t reduction, T* out, int height, int vectors, const Panels<T>& columns,
            int64_t first_block, bool from_zero) const {
    const int tail = columns.lanes(first_block + vectors - 1);
    alignas(64) T sums[kTileSize * W];
    for (int i = 0; i < height * vectors; ++i) S::store(sums + i * W, V{});
    multiply_transposed<T>(height, vectors, sums, a, buffer, reduction);
    for (int m = 0; m < height; ++m) {
      for (int v = 0; v < vectors; ++v) {
        T* to = out + m * columns.length + v * W;
        const int lanes = v == vectors - 1 ? tail : W;
        const V sum = S::load(sums + (m * vectors + v) * W);
        S::store_n(to, from_zero ? sum : S::load_n(to, lanes) + sum, lanes);
      }
    }
  }

  // A block of gradients from a few rows: bound by writing it, so it is written in one sweep.
  template <class RightRow>
  void outer_product(const T* a, int lanes, const Panels<T>& columns, RightRow&& right_row, T* out) const {
    for (int64_t block = 0; block < columns.blocks(); ++block) {
      const int width = columns.lanes(block);
      V right[kFewRows];
      for (int64_t r = 0; r < rows; ++r) right[r] = load_as<T>(right_row(r), block * W, width, right_dtype);
      for (int m = first_lane; m < lanes; ++m) {
        V sum = S::broadcast(a[m]) * right[0];
        for (int64_t r = 1; r < rows; ++r) sum += S::broadcast(a[r * W + m]) * right[r];
        S::store_n(out + m * columns.length + block * W, sum, width);
      }
    }
  }
};

}  // namespace
}  // namespace fastrnn
