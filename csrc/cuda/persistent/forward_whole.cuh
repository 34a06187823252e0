// The forward kernel of one CTA where nothing is missing: whole tiles of units, every row runs all steps as one
// sequence, and every pair lies whole (tiles_are_whole() in launch.cuh). A CTA's warps have more to issue than
// anything to wait for, so a step asks nothing that is known before the first one: whether a row exists, and where it
// lies, which moves on by the same distance at every step. In everything else as forward.cuh, and with the same bits.
//
// Of a step, sm_90 (tests/machine_code.py --issued): a warp of an LSTM in bfloat16 with H=128 issues 317 instructions
// in place of the general kernel's 604, with all 8 reads of shared memory on their way in place of 2; kFloat32, which
// splits every weight at every step, 1273 in place of 1523, and of 1906 before split_weight(). Shared memory is the
// general kernel's. There is no warp for input and output: what it could take over of a step's 317 is some 45
// addresses, loads and stores, for which the others would wait at one more barrier. Not yet run on a GPU:
// docs/gpu-predictions.md.
#pragma once
#include "cuda/persistent/biases.cuh"
#include "cuda/persistent/products_whole.cuh"
#include "cuda/persistent/projection.cuh"

namespace fastrnn::cuda {

template <class Kind, Precision precision, class Exchange>
__device__ __forceinline__ void forward_whole_tiles(const PersistentForward& p, const Cut& cut, uint32_t* shared) {
  using F = Fragments<precision>;
  using T = typename F::Type;
  using M = MathOf<precision>;
  using Cell = typename Kind::template Of<M>;
  constexpr int G = Cell::kGates, S = Cell::kSaved, Gr = G + Cell::kSplit;
  constexpr int kTiles = kMaxTiles<Kind::kKind, precision, Exchange::kTier>;
  using P = Products<F, Exchange, Pass::kForward, G, kTiles>;

  const int64_t B = p.shape.B, D = p.shape.D;
  const int H = cut.unit_tiles * kTileUnits, T_steps = static_cast<int>(p.shape.T);
  const bool relu = p.shape.cell == CellKind::kRnnRelu;
  const Position at = Position::of<Exchange>(p.shape, cut);
  const int d = at.direction;
  uint32_t* rest = shared + front_words(Gr, H);
  Exchange exchange(cut, shared, rest, at.replica);

  if (p.x) project_inputs<F, G>(p, at, cut);

  // So many of a lane's two rows exist. Of one that does not nothing is read or written, nor does what is computed
  // of it reach another row.
  const int rows = at.row >= B ? 0 : at.row + 1 == B ? 1 : 2;
  // From the first step of the direction's own time on, the next step is `time` rows further on in every tensor.
  const int64_t time = d ? -B : B, first = d ? (T_steps - 1) * B : 0, gx_time = time * p.gx_stride;
  const T* from_gx = static_cast<const T*>(p.gx) + (d * cut.N + first + at.row) * p.gx_stride + at.unit;

  // A lane's values: of rows at.row + j and units at.unit + u, as [j][u].
  float h[2][2] = {}, c[2][2] = {};
  Pair<T> gx[G][2] = {};
  const auto load_inputs = [&] {
    const T* row = from_gx;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const T* from = row;
      if (j < rows) {
#pragma unroll
        for (int gate = 0; gate < G; ++gate) {
          gx[gate][j] = load_pair(from, 2, true);
          from += H;
        }
      }
      row += p.gx_stride;
    }
    from_gx += gx_time;
  };
  const int64_t state = (d * B + at.row) * H + at.unit;
  const auto load_state = [&](const void* from, Pair<T>(&pairs)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      pairs[j] = load_pair(static_cast<const T*>(from) + state + j * H, j < rows ? 2 : 0, true);
  };
  Biases<Cell, T> biases(p, d, 0, H);
  Pair<T> h0[2] = {}, c0[2] = {};
  load_state(p.h0, h0);
  if constexpr (Cell::kHasCell) load_state(p.c0, c0);
  load_inputs();
  P products;
  products.load_weights(static_cast<const T*>(p.w_hh[d]), p.w_hh_stride[d], H, at, cut, rest);

  float* bias = reinterpret_cast<float*>(shared + kBiasWord);
  biases.add_up(bias, H);
  bias += at.unit;  // this lane's pair of gate 0
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      h[j][u] = h0[j][u];
      c[j][u] = c0[j][u];
    }
  }

  // Where the lane's first row lies in what is written, at the step in turn. Found only now: what is known before the
  // weights are there waits in registers beside all of them.
  int row = at.row;
  forget(row);
  const int64_t first_row = first + row, in_direction = d * cut.N + first_row;
  T* to_y = static_cast<T*>(p.y) + (first_row * D + d) * H + at.unit;
  T* to_gates = static_cast<T*>(p.gates) + in_direction * S * H + at.unit;
  float* to_cells = p.cells + in_direction * H + at.unit;

  const int64_t own = P::offset(cut, 0, 0, at.unit_tile);
  exchange.template write<F>(0, own, at.lane, h0);

  for (int s = 0;; ++s) {
    const uint32_t* operand = exchange.wait(s);
    float sums[G][4];
    sum_whole_tiles<F, Pass::kForward, G, kTiles>(products, operand, cut, at.lane, sums);

    float saved[2][2][S ? S : 1];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        float pre[G], rec = 0;
        before_functions<Cell, T>(sums, gx, bias, H, j, u, pre, rec);
        cell_forward<Kind, M>(relu, pre, rec, h[j][u], c[j][u], saved[j][u], c[j][u], h[j][u]);
      }
    }
    const Pair<T> output[2] = {pair_of<T>(h[0][0], h[0][1]), pair_of<T>(h[1][0], h[1][1])};
    const bool last = s + 1 == T_steps;
    if (!last) {
      exchange.template write<F>(s + 1, own, at.lane, output);
      load_inputs();
    }
    // Behind the publication: nobody waits for these.
    T* to = to_gates;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (j < rows) {
        store_pair(to_y + j * D * H, output[j], 2, true);
        if constexpr (S > 0) {
          if (p.gates) {
#pragma unroll
            for (int k = 0; k < S; ++k) {
              store_pair(to, pair_of<T>(saved[j][0][k], saved[j][1][k]), 2, true);
              to += H;
            }
          }
        }
        if constexpr (Cell::kHasCell) {
          if (p.cells) store_pair(to_cells + j * H, pair_of<float>(c[j][0], c[j][1]), 2, true);
        }
      }
    }
    if (last) break;
    to_y += time * D * H;
    to_gates += time * S * H;
    to_cells += time * H;
  }

#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (j < rows) {
      store_pair(static_cast<T*>(p.hn) + state + j * H, pair_of<T>(h[j][0], h[j][1]), 2, true);
      if constexpr (Cell::kHasCell) {
        store_pair(static_cast<T*>(p.cn) + state + j * H, pair_of<T>(c[j][0], c[j][1]), 2, true);
      }
    }
  }
}

}  // namespace fastrnn::cuda
