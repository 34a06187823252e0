// Block-diagonal recurrence: which part of h a panel of units multiplies, and its weights. Unit j belongs to head
// j / (H / heads), which has a block of h of the same place. A panel whose units belong to several heads multiplies
// all of their blocks, with zeros between: where a head has an Inf or a NaN, those make NaN of what the others get,
// and the product is made again without them.
#pragma once
#include "cpu/product/pack.inl"
#include "cpu/rnn/schedule.inl"

namespace fastrnn {
namespace {

// Whether no number of a tile is an Inf or a NaN.
template <class T>
bool all_finite(const T* tile, int vectors) {
  typename Simd<T>::V sum{};
  for (int v = 0; v < vectors; ++v) sum += Simd<T>::load(tile + v * Simd<T>::W) * Simd<T>::set(0);
  alignas(64) T zeros[Simd<T>::W];
  Simd<T>::store(zeros, sum);
  for (T lane : zeros) {
    if (!(lane == 0)) return false;
  }
  return true;
}

template <class T>
struct Heads {
  static constexpr int W = Simd<T>::W;
  int64_t units;  // in all
  int64_t size;   // units of a head
  int heads;

  explicit Heads(const LayerShape& s) : units(s.H), size(s.H / max_of(1, s.variant.heads)), heads(s.variant.heads) {}

  // Of the units [begin, end): the units of their heads, from a multiple of W on.
  Range range(int64_t begin, int64_t end) const {
    const int64_t last = min_of(end, units) - 1;
    return {begin / size * size / W * W, (last / size + 1) * size};
  }
  // Of a panel of `columns`; without heads all of K.
  Range range(const Panels<T>& columns, int64_t panel, int64_t K) const {
    if (heads == 1) return {0, K};
    const int64_t first = columns.first_block(panel);
    return range(first * W, (first + columns.blocks_of(panel)) * W);
  }
  // Whether some of the units multiply more than their own head's block.
  bool mixed(Range range) const { return heads > 1 && range.end - range.begin > size; }
  // The longest of these.
  int64_t depth(const Panels<T>& columns, int64_t K) const {
    int64_t most = 0;
    for (int64_t p = 0; p < columns.count(); ++p) {
      const Range r = range(columns, p, K);
      most = max_of(most, r.end - r.begin);
    }
    return most;
  }

  // Element (row j of gate g, column k of h) of w_hh, or zero.
  T element(const void* w_hh, Dtype dtype, int g, int64_t j, int64_t k) const {
    if (j / size != k / size) return 0;
    return load_as<T>(w_hh, (g * units + j) * size + k % size, 1, dtype)[0];
  }

  // tile += the product of a panel of `vectors`, `gates` of them a block of units from first_block on, for `height`
  // rows of the blocked a, which begins where the range does: unit by unit, over its own head's block alone.
  void multiply_apart(int height, int vectors, int gates, T* tile, const T* a, int64_t block_stride, const T* weights,
                      Range range, int64_t first_block) const {
    for (int at = 0; at < height * vectors * W; ++at) {
      const int64_t m = at / W / vectors, lane = at % (vectors * W);
      const int64_t unit = min_of((first_block + lane / W / gates) * W + lane % W, units - 1);
      T sum = 0;
      for (int64_t k = unit / size * size - range.begin, end = k + size; k < end; ++k) {
        sum += a[k / W * block_stride + m * W + k % W] * weights[k * vectors * W + lane];
      }
      tile[at] += sum;
    }
  }

  // A gate panel (pack.inl) of gates [g0, g0 + gates) over the panel's range.
  void pack_gates(const void* w_hh, Dtype dtype, int g0, int gates, const Panels<T>& columns, int64_t panel,
                  T* out) const {
    const Range r = range(columns, panel, units);
    const int blocks = columns.blocks_of(panel);
    for (int64_t k = r.begin; k < r.end; ++k, out += blocks * gates * W) {
      for (int u = 0; u < blocks; ++u) {
        const int64_t block = columns.first_block(panel) + u;
        for (int g = 0; g < gates; ++g) {
          for (int j = 0; j < W; ++j) {
            out[(u * gates + g) * W + j] =
                j < columns.lanes(block) ? element(w_hh, dtype, g0 + g, block * W + j, k) : T(0);
          }
        }
      }
    }
  }
  // A row panel of columns of h, over the range of units, gate by gate.
  void pack_rows(const void* w_hh, Dtype dtype, int gates, const Panels<T>& columns, int64_t panel, T* out) const {
    const Range r = range(columns, panel, units);
    const int blocks = columns.blocks_of(panel);
    for (int g = 0; g < gates; ++g) {
      for (int64_t j = r.begin; j < r.end; ++j, out += blocks * W) {
        for (int k = 0; k < blocks * W; ++k) {
          const int64_t column = columns.first_block(panel) * W + k;
          out[k] = column < units ? element(w_hh, dtype, g, j, column) : T(0);
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastrnn
