// Weight gradients of a chunk of steps: long sums over its rows, added to the natural gradient once a
// chunk.
#pragma once
#include "cpu/product/operand.inl"

namespace fastrnn {
namespace {

template <class T, class Operand>
struct WeightGradient {
  using E = typename Operand::E;
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int W = S::W;
  static constexpr int64_t kReductionRows = 1024;  // rows a pass: their panel stays in the L2 cache
  static constexpr int64_t kFewRows = 4;           // so few are summed without a tile
  static constexpr int64_t kFetchRows = 128;  // rows between two looks ahead, see tile(); whole ones of any operand
  // Vectors of a tile. Of 8 rows that a block gives, a tile of few registers has 4: with three vectors all are in
  // use.
  static constexpr int kGradientVectors = kAccumulators == 24 ? 4 : 3;

  int64_t rows;        // of the chunk
  int64_t left_rows;   // rows that the blocked left operand was allocated for
  bool first;          // the gradient is written, not added to
  Dtype right_dtype;   // of the rows of `right`: Operand's, where it joins terms
  E* buffer;           // buffer_size(rows) elements
  int64_t near_bytes;  // of the plan
  // Of each block of `left`, the units that count.
  int first_lane = 0, last_lane = W;

  static int64_t buffer_size(int64_t rows) {
    return Operand::depth(min_of(kReductionRows, rows)) * kGradientVectors * W;
  }

  // out[row][column] (+)= sum over the chunk's rows of left[row] * right[column], for blocks
  // [begin, end) of `left`. Block i is found at source(i); its W rows begin at natural row
  // (i / blocks) * length + (i % blocks) * W. The rows of `right` are natural: right_row(r).
  template <class Source, class RightRow>
  void add(const E* left, const Panels<T>& left_units, int64_t begin, int64_t end, Source&& source, int64_t width,
           RightRow&& right_row, T* out) const {
    if (begin == end) return;
    const Panels<T> columns{width, kGradientVectors};
    const int64_t blocks = left_units.blocks();
    // Left operands that come from memory are fetched ahead. On a Zen 5 a backward pass gained 15% of that and of the
    // lines that a tile adds to at H = 1024, 6 at 700, 3 at 512, and nothing where they are four times as large as
    // the L2 cache or smaller.
    const bool far = (end - begin) * rows * W * static_cast<int64_t>(sizeof(E)) > 8 * near_bytes;
    const auto natural = [&](int64_t i) {
      return out + (i / blocks * left_units.length + i % blocks * W) * columns.length;
    };
    if constexpr (!Operand::kJoins) {
      if (first && rows <= kFewRows) {
        for (int64_t i = begin; i < end; ++i) {
          outer_product(left + source(i) * left_rows * W, min_of(last_lane, left_units.lanes(i % blocks)), columns,
                        right_row, natural(i));
        }
        return;
      }
    }
    for (int64_t panel = 0; panel < columns.count(); ++panel) {
      const int64_t first_block = columns.first_block(panel);
      const int vectors = columns.blocks_of(panel);
      for (int64_t r0 = 0; r0 < rows; r0 += kReductionRows) {
        const int64_t reduction = min_of(kReductionRows, rows - r0);
        Operand::right_rows([&](int64_t r) { return right_row(r0 + r); }, reduction, right_dtype, columns, panel,
                            buffer);
        for (int64_t i = begin; i < end; ++i) {
          const E* a = left + (source(i) * left_rows + r0) * W;
          const E* next = left + (source(i + 1 < end ? i + 1 : begin) * left_rows + r0) * W;
          T* to = natural(i) + first_block * W;
          const int lanes = min_of(last_lane, left_units.lanes(i % blocks));
          for_tiles(Operand::tile_rows(vectors), first_lane, lanes, [&](int64_t m, int height) {
            const int64_t of_tile = lanes - first_lane, from = reduction * (m - first_lane) / of_tile;
            const Ahead ahead{far ? next + from * W : nullptr,
                              reduction * (m + height - first_lane) / of_tile - from};
            tile(a, m, reduction, to + m * columns.length, height, vectors, columns, first_block, first && r0 == 0,
                 ahead);
          });
        }
      }
    }
  }

  // out[row] (+)= sum over the chunk's rows of left[row].
  template <class Source>
  void add_bias(const E* left, const Panels<T>& left_units, int64_t begin, int64_t end, Source&& source,
                T* out) const {
    const int64_t blocks = left_units.blocks();
    for (int64_t i = begin; i < end; ++i) {
      const int lanes = left_units.lanes(i % blocks);
      T* to = out + i / blocks * left_units.length + i % blocks * W;
      const V sum = Operand::sum_rows(left + source(i) * left_rows * W, rows);
      S::store_n(to, first ? sum : sum + S::load_n(to, lanes), lanes);
    }
  }

 private:
  // Rows of the left operand that will be wanted soon, or none.
  struct Ahead {
    const E* begin;
    int64_t rows;
  };

  void tile(const E* a, int64_t m0, int64_t reduction, T* out, int height, int vectors, const Panels<T>& columns,
            int64_t first_block, bool from_zero, Ahead ahead) const {
    const int tail = columns.lanes(first_block + vectors - 1);
    alignas(64) T sums[Operand::kTileSize * W];
    V zero{};
    in_register(zero);  // else a call of memset
    for (int i = 0; i < height * vectors; ++i) S::store(sums + i * W, zero);
    // Each tile ends with lines far from the last one's, where no hardware prefetcher looks: with them on their way
    // meanwhile a backward pass of one row and 512 units takes .94 of the time for 100 steps and .87 for 20 (AVX2:
    // .83 and .77, as its tiles are smaller).
    for (int m = 0; m < height; ++m) {
      for (int v = 0; v < vectors; ++v) __builtin_prefetch(out + m * columns.length + v * W, 1);
    }
    if (!ahead.begin) {
      Operand::multiply_transposed(height, vectors, sums, a, m0, buffer, reduction);
    } else {
      for (int64_t r = 0; r < reduction; r += kFetchRows) {
        const int64_t n = min_of(kFetchRows, reduction - r);
        for (int64_t i = ahead.rows * r / reduction; i < ahead.rows * (r + n) / reduction; ++i) {
          __builtin_prefetch(ahead.begin + i * W, 0, 2);
        }
        Operand::multiply_transposed(height, vectors, sums, a + r * W, m0, buffer + r * vectors * W, n);
      }
    }
    for (int m = 0; m < height; ++m) {
      for (int v = 0; v < vectors; ++v) {
        T* to = out + m * columns.length + v * W;
        const int lanes = v == vectors - 1 ? tail : W;
        V sum = S::load(sums + (m * vectors + v) * W);
        in_register(sum);  // else calls of memcpy
        S::store_n(to, from_zero ? sum : S::load_n(to, lanes) + sum, lanes);
      }
    }
  }

  // A block of gradients from a few rows: bound by writing it, so every row of it is written in one sweep.
  template <class RightRow>
  void outer_product(const E* a, int lanes, const Panels<T>& columns, RightRow&& right_row, T* out) const {
    out += first_lane * columns.length;
    const char* right[kFewRows] = {};
    for (int64_t r = 0; r < rows; ++r) right[r] = right_row(r);
    const auto sweep = [&]<int R, bool natural>() {
      for (int m = first_lane; m < lanes; ++m, out += columns.length) {
        V left[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) left[r] = S::broadcast(a[r * W + m]);
        const auto put = [&](int64_t k, int n) __attribute__((always_inline)) {
          const auto of = [&](int r) __attribute__((always_inline)) {
            if constexpr (natural) return S::load_n(reinterpret_cast<const T*>(right[r]) + k, n);
            return load_as<T>(right[r], k, n, right_dtype);
          };
          V sum = left[0] * of(0);
#pragma GCC unroll 4
          for (int r = 1; r < R; ++r) sum += left[r] * of(r);
          S::store_n(out + k, sum, n);
        };
        int64_t k = 0;
        for (; k + W <= columns.length; k += W) put(k, W);
        if (k < columns.length) put(k, static_cast<int>(columns.length - k));
      }
    };
    const auto with_rows = [&]<bool natural>() {
      rows == 1   ? sweep.template operator()<1, natural>()
      : rows == 2 ? sweep.template operator()<2, natural>()
      : rows == 3 ? sweep.template operator()<3, natural>()
                  : sweep.template operator()<4, natural>();
    };
    size_of(right_dtype) == sizeof(T) ? with_rows.template operator()<true>()
                                      : with_rows.template operator()<false>();
  }
};

}  // namespace
}  // namespace fastrnn
