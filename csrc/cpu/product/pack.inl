// Weights into panels: the order in which a tile reads them.
//
// Gate panels (forward): a panel serves `units` blocks of W hidden units with all their gates,
//     [panel][part][K][units][gates of a part][W], element = weight[g*H + unit][k],
// so that a tile ends with every gate of its units in registers, or with half of them where there are few
// registers: then a panel has two parts. Units beyond H are zero. The last panel may hold fewer blocks.
// The last block of units may be far from full: then its gates lie one behind the other, `lanes` elements each, in as
// few vectors as hold them (three gates of 4 units in one of 16 lanes).
//
// Row panels (backward): `kPanelVectors` vectors of consecutive columns,
//     [panel][K][vectors*W], element = weight[k][column],
// a plain copy of row segments, zero beyond the last column.
#pragma once
#include "cpu/product/tile.inl"

namespace fastrnn {
namespace {

// How a row of hidden units (or of columns) is cut into panels.
template <class T>
struct Panels {
  int64_t length;  // units or columns
  int per_panel;   // blocks of W a panel

  int64_t blocks() const { return ceil_div(length, Simd<T>::W); }
  int64_t count() const { return ceil_div(blocks(), per_panel); }
  int64_t first_block(int64_t panel) const { return panel * per_panel; }
  int blocks_of(int64_t panel) const {
    return static_cast<int>(min_of<int64_t>(per_panel, blocks() - first_block(panel)));
  }
  // Lanes in use of a block of W.
  int lanes(int64_t block) const {
    return static_cast<int>(min_of<int64_t>(Simd<T>::W, length - block * Simd<T>::W));
  }
};

// Every step-th panel of [begin, end).
struct Turns {
  int64_t begin, end, step;
};

// Whether a half type is loaded by instructions of its own, not lane by lane.
#if defined(FASTRNN_AVX512) || defined(FASTRNN_AVX2) || defined(FASTRNN_NEON)
constexpr bool kConvertsHalf = true;
#else
constexpr bool kConvertsHalf = false;
#endif

// What is packed comes from far away, in blocks of W rows of a line each, which nothing prefetches unasked. With
// lines asked for so far ahead an LSTM of 512 units and one row takes .87 of the time for 20 steps, .97 for 100 (on a
// Zen 4).
constexpr int64_t kPackAhead = 768, kLine = 64;  // bytes
// Where it goes is far away as well, and a store that waits for its line holds up those behind it: lines of so many
// rows ahead are asked for (the same matrices, 8 MB: .44 ms of .67).
constexpr int64_t kPackedAhead = 64;
// Rows ahead of row panels, where it comes from and where it goes (8 MB: .37 ms of .54, 32 MB: 2.8 of 5.6).
constexpr int64_t kPackRowsAhead = 16;

// The lines of W rows, `bytes` each from one to the next, that come so far behind column byte `at` of `length`, or a
// whole row: of these rows, or of those after.
template <int W>
FASTRNN_INLINE void prefetch_rows(const void* rows, const void* rows_after, int64_t bytes, int64_t at,
                                  int64_t length) {
  if (at % kLine) return;
  const int64_t over = at + min_of(kPackAhead, length) - length;
  const char* line = over < 0 ? static_cast<const char*>(rows) + length : static_cast<const char*>(rows_after);
  line += over;
#pragma GCC unroll 16
  for (int j = 0; j < W; ++j, line += bytes) __builtin_prefetch(line, 0, 2);
}

// W rows of `weight` from column k on, W columns, transposed; zero beyond `lanes` rows and n columns.
template <class T>
FASTRNN_INLINE void load_transposed(typename Simd<T>::V (&rows)[Simd<T>::W], const void* weight, int64_t first_row,
                                    int64_t ld, int64_t k, int lanes, int n, Dtype dtype) {
  using S = Simd<T>;
  constexpr int W = S::W;
  const auto whole = [&]<Dtype kStored>() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) rows[j] = load_as<T>(weight, (first_row + j) * ld + k, W, kStored);
  };
  const bool inside = lanes == W && n == W;
  if (inside && size_of(dtype) == sizeof(T)) {
    constexpr int64_t kSize = sizeof(T);
    return load_columns<T>(rows, static_cast<const char*>(weight) + (first_row * ld + k) * kSize, ld * kSize);
  }
  if (kConvertsHalf && sizeof(T) == 4 && inside && dtype == Dtype::kBFloat16) {
    whole.template operator()<Dtype::kBFloat16>();
  } else if (kConvertsHalf && sizeof(T) == 4 && inside) {
    whole.template operator()<Dtype::kHalf>();
  } else {  // edges: through memory, in a loop that stays small
    alignas(64) T edge[W * W] = {};
#pragma GCC unroll 1
    for (int j = 0; j < lanes; ++j) S::store(edge + j * W, load_as<T>(weight, (first_row + j) * ld + k, n, dtype));
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) rows[j] = S::load(edge + j * W);
  }
  transpose<T>(rows);
}

// One part of a gate panel of `weight` (rows of ld elements in the layer's dtype, H a gate): G gates from
// first_gate on, K columns.
template <class T>
void pack_gate_panel(const void* weight, int64_t ld, Dtype dtype, int first_gate, int G, const Panels<T>& units,
                     int64_t panel, int64_t K, T* out) {
  using S = Simd<T>;
  constexpr int W = S::W;
  const int blocks = units.blocks_of(panel);
  const int64_t row_size = static_cast<int64_t>(blocks) * G * W;
  const int64_t element = static_cast<int64_t>(size_of(dtype)), row_bytes = ld * element;
  for (int u = 0; u < blocks; ++u) {
    const int64_t block = units.first_block(panel) + u;
    const int lanes = units.lanes(block);
    for (int g = 0; g < G; ++g) {
      T* dst = out + (u * G + g) * W;
      const int64_t first_row = (first_gate + g) * units.length + block * W;
      const char* const from = static_cast<const char*>(weight) + first_row * row_bytes;
      const char* const after = from + (g + 1 < G ? units.length : W - g * units.length) * row_bytes;
      for (int64_t k = 0; k < K; k += W) {
        const int n = static_cast<int>(min_of<int64_t>(W, K - k));
        prefetch_rows<W>(from, after, row_bytes, k * element, K * element);
        const T* const later = dst + (k + kPackedAhead) * row_size;
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) __builtin_prefetch(later + j * row_size, 1, 2);
        typename S::V rows[W];
        load_transposed<T>(rows, weight, first_row, ld, k, lanes, n, dtype);
        if (n == W) {
#pragma GCC unroll 16
          for (int j = 0; j < W; ++j) S::store(dst + (k + j) * row_size, rows[j]);
        } else {
          alignas(64) T edge[W * W];
#pragma GCC unroll 16
          for (int j = 0; j < W; ++j) S::store(edge + j * W, rows[j]);
          for (int j = 0; j < n; ++j) S::store(dst + (k + j) * row_size, S::load(edge + j * W));
        }
      }
    }
  }
}

// The same of a block of `lanes` units whose gates lie one behind the other, `vectors` a row.
template <class T>
void pack_close_gates(const void* weight, int64_t ld, Dtype dtype, int first_gate, int G, int vectors,
                      const Panels<T>& units, int64_t block, int64_t K, T* out) {
  using S = Simd<T>;
  constexpr int W = S::W;
  const int lanes = units.lanes(block);
  for (int64_t k = 0; k < K; k += W) {
    const int n = static_cast<int>(min_of<int64_t>(W, K - k));
    for (int g = 0; g < G; ++g) {
      typename S::V rows[W];
      load_transposed<T>(rows, weight, (first_gate + g) * units.length + block * W, ld, k, lanes, n, dtype);
      alignas(64) T edge[W * W];
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) S::store(edge + j * W, rows[j]);
      for (int j = 0; j < n; ++j) {
        T* row = out + (k + j) * vectors * W;
        if (g == 0) S::store(row + (vectors - 1) * W, typename S::V{});  // what no gate fills
        S::store_n(row + g * lanes, S::load(edge + j * W), lanes);
      }
    }
  }
}

// The biases of one block of units: what the input projection starts from, and apart from it what a
// split gate's recurrent part starts from (C is the cell).
template <class T, class C>
void pack_gate_bias(const DirectionWeights& weights, const LayerShape& shape, const Panels<T>& units, int64_t block,
                    T* bias, T* bias_rec, int part_gates = C::kGates, int part_vectors = C::kGates,
                    int gate_step = Simd<T>::W) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int W = S::W, G = C::kGates;
  const int lanes = units.lanes(block);
  bias += block * G * W;
  for (int g = 0; g < G; ++g) S::store(bias + g * W, V{});
  for (int g = 0; g < G; ++g) {
    const int64_t at = g * shape.H + block * W;
    const V input = shape.bias ? load_as<T>(weights.b_ih, at, lanes, shape.dtype) : V{};
    const V recurrent = shape.bias ? load_as<T>(weights.b_hh, at, lanes, shape.dtype) : V{};
    const bool split = C::kSplit && g == G - 1;
    if (split) S::store(bias_rec + block * W, recurrent);
    S::store_n(bias + g / part_gates * part_vectors * W + g % part_gates * gate_step,
               split ? input : input + recurrent, lanes);
  }
}

// One row panel of `weight` (K rows of ld elements), columns of `columns`.
template <class T>
void pack_row_panel(const void* weight, int64_t ld, Dtype dtype, const Panels<T>& columns, int64_t panel, int64_t K,
                    T* out) {
  using S = Simd<T>;
  constexpr int W = S::W;
  const int blocks = columns.blocks_of(panel), last = columns.lanes(columns.first_block(panel) + blocks - 1);
  const int64_t first = columns.first_block(panel) * W, element = static_cast<int64_t>(size_of(dtype));
  const auto rows = [&]<Dtype kStored>() __attribute__((always_inline)) {
    const char* from = static_cast<const char*>(weight) + first * element;
    for (int64_t k = 0; k < K; ++k, from += ld * element, out += blocks * W) {
      for (int v = 0; v < blocks; ++v) {
        __builtin_prefetch(from + kPackRowsAhead * ld * element + v * W * element, 0, 2);
        __builtin_prefetch(out + (kPackRowsAhead * blocks + v) * W, 1, 2);
        S::store(out + v * W, load_as<T>(from, v * W, v + 1 < blocks ? W : last, kStored));
      }
    }
  };
  if constexpr (sizeof(T) == 8) {
    rows.template operator()<Dtype::kDouble>();
  } else {
    dtype == Dtype::kFloat      ? rows.template operator()<Dtype::kFloat>()
    : dtype == Dtype::kBFloat16 ? rows.template operator()<Dtype::kBFloat16>()
                                : rows.template operator()<Dtype::kHalf>();
  }
}

// Rows to allocate for a blocked operand: odd, so that the blocks of a row, which a tile reads one
// after the other, spread over all sets of a cache (64 rows of 64 bytes would hit the same ones).
FASTRNN_INLINE int64_t spread_rows(int64_t rows) { return rows | 1; }

// A natural row of `size` features (layer dtype) into row r of a blocked operand of `rows` rows, whose
// elements Operand stores (operand.inl).
template <class T, class Operand>
FASTRNN_INLINE void block_row(const void* row, int64_t size, Dtype dtype, typename Operand::E* out, int64_t rows,
                              int64_t r) {
  constexpr int W = Simd<T>::W;
  out += r * W;
  for (int64_t k = 0; k < size; k += W, out += rows * W) {
    Operand::put(out, row, k, static_cast<int>(min_of<int64_t>(W, size - k)), dtype);
  }
}

}  // namespace
}  // namespace fastrnn
