// x's part of the gates of all steps, made by the forward kernel before the first one: where x is narrow and the
// sequence short, that costs less than the launch of a product of its own.
//
// A finishing warp makes what its own lanes read later, its 16 units for its rows, with W_ih in the registers that
// the recurrent weights take afterwards. A product's 8 columns are so many steps of the tile's rows as there is room
// for: with one row, 8 steps at once.
#pragma once
#include "cuda/persistent/products.cuh"

namespace fastrnn::cuda {

// All lanes of a finishing warp call it, and then gx is there for them. A gate at a time: its weights are few
// registers, and the code is short; the next gate's are on their way meanwhile.
template <class F, int kGates>
__device__ __forceinline__ void project_inputs(const PersistentForward& p, const Position& at, const Cut& cut) {
  using T = typename F::Type;
  constexpr int kAtOnce = 4;  // products whose columns are on their way together
  const int64_t H = p.shape.H, B = p.shape.B;
  const int I = static_cast<int>(p.shape.I), d = at.direction, c = at.lane & 3;
  const int first_row = at.row - 2 * c;
  if (at.unit_tile >= cut.unit_tiles || first_row >= B) return;

  // Column i of a product: batch row `row`, `step` steps behind the product's first one.
  struct Column {
    int64_t row, length;
    int step;
  };
  const int rows = B - first_row < kTileRows ? static_cast<int>(B - first_row) : kTileRows;
  const int steps = kTileRows / rows;
  const auto column = [&](int i) {
    Column column = {first_row + i % rows, 0, i / rows};
    if (column.step < steps) column.length = p.lengths ? p.lengths[column.row] : p.shape.T;
    return column;
  };
  // Its row of x and gx, below 0 where there is none.
  const auto row_at = [&](int64_t t, const Column& column) -> int64_t {
    t += column.step;
    if (t >= column.length) return -1;
    return (p.row_offsets ? p.row_offsets[t] : t * B) + column.row;
  };
  const Column in = column(at.lane >> 2), out[2] = {column(2 * c), column(2 * c + 1)};

  using Weights = TiledWeights<F, Pass::kForward>;
  const Weights weights = {static_cast<const T*>(p.w_ih[d]), p.w_ih_stride[d], H, at.lane};
  uint32_t next[kInputTiles][F::kRegisters];
  // By pairs: what is loaded by four the compiler puts in order again at every product.
  const auto load_next = [&](int gate) {
#pragma unroll
    for (int tile = 0; tile < kInputTiles; ++tile) {
      if (cut.inputs_at_once > 1) {
        weights.template load<2>(next[tile], gate, at.unit_tile, tile, static_cast<int>(H), I);
      } else {
        weights.template load<1>(next[tile], gate, at.unit_tile, tile, static_cast<int>(H), I);
      }
    }
  };
  load_next(0);
#pragma unroll 1
  for (int gate = 0; gate < kGates; ++gate) {
    uint32_t a[kInputTiles][F::kRegisters];
#pragma unroll
    for (int tile = 0; tile < kInputTiles; ++tile) {
#pragma unroll
      for (int r = 0; r < F::kRegisters; ++r) a[tile][r] = next[tile][r];
      Weights::arrange(a[tile]);
    }
    if (gate + 1 < kGates) load_next(gate + 1);
#pragma unroll 1
    for (int64_t t = 0; t < p.shape.T; t += steps * kAtOnce) {
      typename F::Words x[kAtOnce][kInputTiles];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int64_t row = row_at(t + n * steps, in);
        const T* from = static_cast<const T*>(p.x) + row * I + 4 * c;
#pragma unroll
        for (int tile = 0; tile < kInputTiles; ++tile) {
          const int k = tile * kTileUnits, there = row < 0 ? 0 : I - k - 4 * c;
          x[n][tile] = F::words(load_pair(from + k, there < 2 ? there : 2, cut.whole_x),
                                load_pair(from + k + 2, there < 4 ? there - 2 : 2, cut.whole_x));
        }
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        float sums[4] = {};
#pragma unroll
        for (int tile = 0; tile < kInputTiles; ++tile) {
          if (tile * kTileUnits < I) F::multiply(sums, a[tile], x[n][tile]);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int64_t row = row_at(t + n * steps, out[j]);
          T* to = static_cast<T*>(p.gx) + (d * cut.N + row) * p.gx_stride + gate * H + at.unit;
          store_pair(to, pair_of<T>(sums[j], sums[2 + j]), row < 0 ? 0 : at.units, cut.whole_pairs);
        }
      }
    }
  }
  __syncwarp();  // a lane reads what others made
}

}  // namespace fastrnn::cuda
