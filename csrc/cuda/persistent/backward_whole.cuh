// The backward kernel of one CTA where nothing is missing, as forward_whole.cuh: in everything else as backward.cuh,
// and with the same bits.
//
// Of a step, sm_90: a warp of an LSTM in bfloat16 with H=128 issues 346 instructions in place of the general kernel's
// 896, with 8 reads of shared memory on their way in place of 2, and 8 products in a row in place of 32.
#pragma once
#include "cuda/persistent/products_whole.cuh"

namespace fastrnn::cuda {

template <class Kind, Precision precision, class Exchange>
__device__ __forceinline__ void backward_whole_tiles(const PersistentBackward& p, const Cut& cut, uint32_t* shared) {
  using F = Fragments<precision>;
  using T = typename F::Type;
  using M = MathOf<precision>;
  using Cell = typename Kind::template Of<M>;
  constexpr int G = Cell::kGates, S = Cell::kSaved, Gr = G + Cell::kSplit;
  constexpr int kTiles = kMaxTiles<Kind::kKind, precision, Exchange::kTier>;
  using P = Products<F, Exchange, Pass::kBackward, G, kTiles>;

  const int64_t B = p.shape.B, D = p.shape.D;
  const int H = cut.unit_tiles * kTileUnits, T_steps = static_cast<int>(p.shape.T);
  const bool relu = p.shape.cell == CellKind::kRnnRelu;
  const Position at = Position::of<Exchange>(p.shape, cut);
  const int d = at.direction;
  uint32_t* rest = shared + front_words(0, 0);
  Exchange exchange(cut, shared, rest, at.replica);

  // So many of a lane's two rows exist, and have a gradient of y. Of one that does not nothing is read or written,
  // nor does what is computed of it reach another row.
  const int rows = at.row >= B ? 0 : at.row + 1 == B ? 1 : 2, rows_of_y = p.grad_y ? rows : 0;
  // Where the lane's first row lies in every tensor, from the last step of the direction's own time on; the step
  // before it is `time` rows further on.
  const int64_t time = d ? B : -B, first_row = (d ? 0 : (T_steps - 1) * B) + at.row,
                in_direction = d * cut.N + first_row;
  const int64_t state = (d * B + at.row) * H + at.unit;
  const T* from_gates = static_cast<const T*>(p.gates) + in_direction * S * H + at.unit;
  const T* from_grad_y = static_cast<const T*>(p.grad_y) + first_row * p.grad_y_stride + d * H + at.unit;
  const float* from_cells = p.cells + in_direction * H + at.unit;
  const T* from_y = static_cast<const T*>(p.y) + (first_row * D + d) * H + at.unit;
  T* to_dgates = static_cast<T*>(p.dgates) + in_direction * Gr * H + at.unit;
  const int64_t gates_time = time * S * H, grad_y_time = time * p.grad_y_stride, cells_time = time * H,
                y_time = time * D * H, dgates_time = time * Gr * H;

  // What a step reads, for the lane's rows j and units u.
  Pair<T> saved[S ? S : 1][2] = {}, grad_y[2] = {};
  Pair<T> h[2] = {};           // GRU: h_prev, RNN: h
  Pair<float> c_prev[2] = {};  // LSTM
  // `first`: no step comes before it in the direction's own time, so that it starts from h0, c0.
  const auto read = [&](bool first) {
    if constexpr (S > 0) {
      const T* row = from_gates;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const T* from = row;
        if (j < rows) {
#pragma unroll
          for (int k = 0; k < S; ++k) {
            saved[k][j] = load_pair(from, 2, true);
            from += H;
          }
        }
        row += S * H;
      }
      from_gates += gates_time;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (j < rows_of_y) grad_y[j] = load_pair(from_grad_y + j * p.grad_y_stride, 2, true);
    }
    from_grad_y += grad_y_time;
    if constexpr (Cell::kHasCell) {
      from_cells += cells_time;
      if (first) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const Pair<T> c0 = load_pair(static_cast<const T*>(p.c0) + state + j * H, j < rows ? 2 : 0, true);
          c_prev[j] = pair_of<float>(c0[0], c0[1]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (j < rows) c_prev[j] = load_pair(from_cells + j * H, 2, true);
        }
      }
    } else {
      if constexpr (Cell::kSplit) from_y += y_time;
      const T* const from = Cell::kSplit && first ? static_cast<const T*>(p.h0) + state : from_y;
      const int64_t row = Cell::kSplit && first ? H : D * H;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (j < rows) h[j] = load_pair(from + j * row, 2, true);
      }
      if constexpr (!Cell::kSplit) from_y += y_time;
    }
  };

  // Of the lane's rows and units, as [j][u]: the gradient of h that does not come through the product, that of c, and
  // c itself.
  float carried[2][2] = {}, dc[2][2] = {}, c[2][2] = {};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const Pair<T> dh_n =
        load_pair(static_cast<const T*>(p.grad_hn) + state + j * H, j < rows && p.grad_hn ? 2 : 0, true);
    carried[j][0] = dh_n[0];
    carried[j][1] = dh_n[1];
    if constexpr (Cell::kHasCell) {
      const Pair<T> dc_n =
          load_pair(static_cast<const T*>(p.grad_cn) + state + j * H, j < rows && p.grad_cn ? 2 : 0, true);
      const Pair<float> c_n = load_pair(from_cells + j * H, j < rows ? 2 : 0, true);
      dc[j][0] = dc_n[0];
      dc[j][1] = dc_n[1];
      c[j][0] = c_n[0];
      c[j][1] = c_n[1];
    }
  }
  read(T_steps == 1);
  P products;
  products.load_weights(static_cast<const T*>(p.w_hh[d]), p.w_hh_stride[d], H, at, cut, rest);
  const int publications = p.dh0 ? T_steps : T_steps - 1;

  // Gradient of h through the product, of publication i; nothing reaches the last step.
  float through[4] = {};
  for (int i = 0;; ++i) {  // step T-1-i of the direction's own time
    Pair<T> dgates[Gr][2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float of_row[2][Gr];
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float dh = carried[j][u] + through[2 * u + j], of_h = h[j][u];
        float of_step[S ? S : 1] = {};
        if constexpr (S > 0) {
#pragma unroll
          for (int k = 0; k < S; ++k) of_step[k] = saved[k][j][u];
        }
        float dpre[G], drec = 0, dc_prev = 0, dh_prev = 0;
        cell_backward<Kind, M>(relu, of_step, c_prev[j][u], c[j][u], of_h, of_h, dh + grad_y[j][u], dc[j][u], dpre,
                               drec, dc_prev, dh_prev);
#pragma unroll
        for (int gate = 0; gate < G; ++gate) of_row[u][gate] = dpre[gate];
        if constexpr (Cell::kSplit) of_row[u][G] = drec;
        carried[j][u] = dh_prev;
        dc[j][u] = dc_prev;
        c[j][u] = c_prev[j][u];
      }
#pragma unroll
      for (int k = 0; k < Gr; ++k) dgates[k][j] = pair_of<T>(of_row[0][k], of_row[1][k]);
    }
    if (i < publications) {
      // The recurrent gates in torch's order: a GRU's last one has its recurrent part's gradient.
#pragma unroll
      for (int gate = 0; gate < G; ++gate) {
        exchange.template write<F>(i, P::offset(cut, 0, gate, at.unit_tile), at.lane,
                                   dgates[Cell::kSplit && gate == G - 1 ? G : gate]);
      }
    }

    // Behind the publication: nobody waits for these.
    const bool last = i + 1 == T_steps;
    if (!last) read(i + 2 == T_steps);
    T* to = to_dgates;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (j < rows) {
        // GRU: n, r, z, rec.
#pragma unroll
        for (int k = 0; k < Gr; ++k) {
          const int gate = !Cell::kSplit || k == G ? k : k == 0 ? G - 1 : k - 1;
          store_pair(to, dgates[gate][j], 2, true);
          to += H;
        }
      }
    }
    to_dgates += dgates_time;
    if (i < publications) {
      float sums[1][4];
      sum_whole_tiles<F, Pass::kBackward, G, kTiles>(products, exchange.wait(i), cut, at.lane, sums);
#pragma unroll
      for (int r = 0; r < 4; ++r) through[r] = sums[0][r];
    }
    if (last) break;
  }

#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (j < rows) {
      if (p.dh0) {
        store_pair(static_cast<T*>(p.dh0) + state + j * H,
                   pair_of<T>(carried[j][0] + through[j], carried[j][1] + through[2 + j]), 2, true);
      }
      if constexpr (Cell::kHasCell) {
        if (p.dc0) {
          store_pair(static_cast<T*>(p.dc0) + state + j * H, pair_of<T>(dc[j][0], dc[j][1]), 2, true);
        }
      }
    }
  }
}

}  // namespace fastrnn::cuda
