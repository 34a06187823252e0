// The forward kernel of the persistent tiers; params.h holds its contract.
//
// Where x is narrow, x's part of the gates is made first (projection.cuh). Then per step and CTA: one barrier (one
// CTA), one flag of the L2 cache and two barriers (grid), or the peers' bytes and one barrier (cluster); the products
// of its tiles, and for a lane 4 units and rows of pointwise work. Read: gx. Written: y, and what is saved.
// Everything else stays where it is: weights, c, a GRU's h and the biases in registers, h in shared memory or the L2
// cache.
//
// Registers: the weights (plan/tiles.h); for each gate four sums, four values of gx, on their way since the step
// before, h and c, the rows' lengths. Biases are in shared memory.
#pragma once
#include "cuda/persistent/biases.cuh"
#include "cuda/persistent/forward_whole.cuh"
#include "cuda/persistent/projection.cuh"

namespace fastrnn::cuda {

template <class Kind, Precision precision, class Exchange>
__global__ void __launch_bounds__(kMaxThreads, 1)
    persistent_forward_kernel(const PersistentForward p, const Cut cut) {
  using F = Fragments<precision>;
  using T = typename F::Type;
  using M = MathOf<precision>;
  using Cell = typename Kind::template Of<M>;
  constexpr int G = Cell::kGates, S = Cell::kSaved, Gr = G + Cell::kSplit;
  constexpr int kTiles = kMaxTiles<Kind::kKind, precision, Exchange::kTier>;
  if constexpr (!Exchange::kCompiled) return;
  SMEM_DYN(uint32_t, shared);
  if constexpr (kWholeTiles<Exchange>) {
    forward_whole_tiles<Kind, precision, Exchange>(p, cut, shared);
    return;
  }

  const int64_t H = p.shape.H, B = p.shape.B, D = p.shape.D, N = cut.N;
  const int T_steps = static_cast<int>(p.shape.T);
  const bool relu = p.shape.cell == CellKind::kRnnRelu, whole = cut.whole_pairs;
  Position at = Position::of<Exchange>(p.shape, cut);
  const int d = at.direction;
  const Schedule schedule{p.row_offsets, T_steps, B, at.direction};
  const LaneRows lane_rows(p.lengths, T_steps, B, at.row);
  const int cta_units = Exchange::cta_tiles(cut) * kTileUnits, cta_unit = at.cta_tile * kTileUnits;
  uint32_t* rest = shared + front_words(Gr, cta_units);
  Exchange exchange(cut, shared, rest, at.replica);

  if (p.x && at.finishes) project_inputs<F, G>(p, at, cut);

  // A lane's values: of rows at.row + j and units at.unit + u, as [j][u].
  float h[2][2] = {}, c[2][2] = {};
  Pair<T> gx[G][2];
  int begins = 0;  // which of the rows begin a new sequence
  // What the step needs besides the product, a step ahead.
  const auto load_inputs = [&](const StepOf& step) {
    const T* rows = static_cast<const T*>(p.gx) + (d * N + step.first + at.row) * p.gx_stride + at.unit;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int units = lane_rows.run(step, j) ? at.units : 0;
#pragma unroll
      for (int gate = 0; gate < G; ++gate) {
        gx[gate][j] = load_pair(rows + j * p.gx_stride + gate * H, units, whole);
      }
    }
    begins = lane_rows.begin(p.resets, step, B, at.row, at.direction);
  };
  const auto load_state = [&](const void* from, Pair<T>(&state)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const T* row = static_cast<const T*>(from) + (d * B + at.row + j) * H + at.unit;
      state[j] = load_pair(row, at.row + j < B ? at.units : 0, whole);
    }
  };
  // What the first step needs of memory: all of it is on its way before anything waits, the biases first.
  Biases<Cell, T> biases(p, d, cta_unit, cta_units);
  StepOf now = schedule.at(0);
  Pair<T> h0[2] = {}, c0[2] = {};
  if (at.finishes) {
    load_state(p.h0, h0);
    if constexpr (Cell::kHasCell) load_state(p.c0, c0);
    load_inputs(now);
  }
  Products<F, Exchange, Pass::kForward, G, kTiles> products;
  products.load_weights(static_cast<const T*>(p.w_hh[d]), p.w_hh_stride[d], static_cast<int>(H), at, cut, rest);

  float* bias = reinterpret_cast<float*>(shared + kBiasWord);
  biases.add_up(bias, cta_units);
  bias += at.unit - cta_unit;  // this lane's pair of gate 0
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      h[j][u] = h0[j][u];
      c[j][u] = c0[j][u];
    }
  }

  // This warp's tile of publication i.
  const auto publish = [&](int i, const Pair<T>(&rows)[2]) {
    using P = decltype(products);
    exchange.template write<F>(i, P::offset(cut, at.row_tile, 0, at.unit_tile), at.lane, rows);
    exchange.publish();
  };

  if (!exchange.begin(T_steps)) return;
  if (at.finishes) publish(0, h0);

  for (int s = 0; s < T_steps; ++s) {
    at.forget_addresses(H);

    const uint32_t* operand = exchange.wait(s);
    float sums[G][4];
    products.sum(operand, rest, exchange.parts(), at, cut, exchange.poison, sums);

    if (at.finishes) {
      if (begins) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {  // unit r/2 of row r%2
          if (begins >> (r & 1) & 1) {
            h[r & 1][r >> 1] = c[r & 1][r >> 1] = 0;
#pragma unroll
            for (int gate = 0; gate < G; ++gate) sums[gate][r] = exchange.poison;
          }
        }
      }
      float saved[2][2][S ? S : 1];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const bool active = lane_rows.run(now, j);
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          float pre[G], rec = 0;
          before_functions<Cell, T>(sums, gx, bias, cta_units, j, u, pre, rec);
          float c_new = 0, h_new = 0;
          cell_forward<Kind, M>(relu, pre, rec, h[j][u], c[j][u], saved[j][u], c_new, h_new);
          if (active) {  // a row that has ended, or not begun, keeps its state
            h[j][u] = h_new;
            c[j][u] = c_new;
          }
        }
      }
      const Pair<T> output[2] = {pair_of<T>(h[0][0], h[0][1]), pair_of<T>(h[1][0], h[1][1])};
      if (s + 1 < T_steps) publish(s + 1, output);

      // Behind the publication: nobody waits for these.
      load_inputs(schedule.at(s + 1));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (lane_rows.run(now, j)) {
          const int64_t row = now.first + at.row + j, in_direction = d * N + row;
          store_pair(static_cast<T*>(p.y) + (row * D + d) * H + at.unit, output[j], at.units, whole);
          if constexpr (S > 0) {
            if (p.gates) {
              T* gates = static_cast<T*>(p.gates) + in_direction * S * H + at.unit;
#pragma unroll
              for (int k = 0; k < S; ++k)
                store_pair(gates + k * H, pair_of<T>(saved[j][0][k], saved[j][1][k]), at.units, whole);
            }
          }
          if constexpr (Cell::kHasCell) {
            if (p.cells)
              store_pair(p.cells + in_direction * H + at.unit, pair_of<float>(c[j][0], c[j][1]), at.units, whole);
          }
        }
      }
    }
    now = schedule.at(s + 1);
  }

  exchange.end();
  if (!at.finishes) return;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (at.row + j < B) {
      const int64_t state = (d * B + at.row + j) * H + at.unit;
      store_pair(static_cast<T*>(p.hn) + state, pair_of<T>(h[j][0], h[j][1]), at.units, whole);
      if constexpr (Cell::kHasCell) {
        store_pair(static_cast<T*>(p.cn) + state, pair_of<T>(c[j][0], c[j][1]), at.units, whole);
      }
    }
  }
}

}  // namespace fastrnn::cuda
