// The backward kernel of the persistent tiers; params.h holds its contract.
//
// A step takes the gradient of its h (grad_y, the later step's gates' gradient times the weights, and what passed the
// product by) through the cell, and publishes the gates' gradient for the product of the step before it in time.
// Where the product is made, before the exchange or behind it: backward_gathered.cuh, backward_scattered.cuh. Per
// step and CTA as in forward: barriers, a flag or the peers' bytes. Read: the saved values and grad_y, prefetched a
// step ahead. Written: dgates.
#pragma once
#include "cuda/persistent/backward_gathered.cuh"
#include "cuda/persistent/backward_scattered.cuh"
#include "cuda/persistent/backward_whole.cuh"

namespace fastrnn::cuda {

template <class Kind, Precision precision, class Exchange, int kGates>
using BackwardProduct = std::conditional_t<
    Exchange::kTier == Tier::kCluster,
    ScatteredProduct<Fragments<precision>, kGates, kMaxGroups<Kind::kKind, precision>>,
    GatheredProduct<Fragments<precision>, Exchange, kGates, kMaxTiles<Kind::kKind, precision, Exchange::kTier>>>;

template <class Kind, Precision precision, class Exchange>
__global__ void __launch_bounds__(kMaxThreads, 1)
    persistent_backward_kernel(const PersistentBackward p, const Cut cut) {
  using T = typename Fragments<precision>::Type;
  using M = MathOf<precision>;
  using Cell = typename Kind::template Of<M>;
  constexpr int G = Cell::kGates, S = Cell::kSaved, Gr = G + Cell::kSplit;
  using Product = BackwardProduct<Kind, precision, Exchange, G>;
  if constexpr (!Exchange::kCompiled) return;
  SMEM_DYN(uint32_t, shared);
  if constexpr (kWholeTiles<Exchange>) {
    backward_whole_tiles<Kind, precision, Exchange>(p, cut, shared);
    return;
  }

  const int64_t H = p.shape.H, B = p.shape.B, D = p.shape.D, N = cut.N;
  const int T_steps = static_cast<int>(p.shape.T);
  const bool relu = p.shape.cell == CellKind::kRnnRelu, whole = cut.whole_pairs;
  Position at = Product::place(p.shape, cut);
  const int d = at.direction;
  const Schedule schedule{p.row_offsets, T_steps, B, at.direction};
  const LaneRows lane_rows(p.lengths, T_steps, B, at.row);
  Product product(cut, shared, at);

  // Addresses of this lane's pair in row `row` of the direction's N, and of batch row `row`.
  const auto in_output = [&](const void* base, int64_t row) {
    return static_cast<const T*>(base) + (row * D + d) * H + at.unit;
  };
  const auto in_state = [&](const void* base, int64_t row) {
    return static_cast<const T*>(base) + (d * B + row) * H + at.unit;
  };
  const auto in_cells = [&](int64_t row) { return p.cells + (d * N + row) * H + at.unit; };

  // What a step reads, for the lane's rows j and units u.
  struct Read {
    Pair<T> saved[S ? S : 1][2];
    Pair<T> grad_y[2];
    Pair<T> h[2];           // GRU: h_prev, RNN: h
    Pair<float> c_prev[2];  // LSTM
    int begins = 0;         // which of the rows begin a new sequence: their h_prev and c_prev are zero
  };
  // `previous`: the step before this one in the direction's own time. A row that it lacks starts from h0, c0.
  const auto read = [&](const StepOf& step, const StepOf& previous) {
    Read in;
    in.begins = lane_rows.begin(p.resets, step, B, at.row, at.direction);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int b = at.row + j;
      const int64_t row = step.first + b;
      const int units = lane_rows.run(step, j) ? at.units : 0;
      const bool starts = !lane_rows.run(previous, j);
      if constexpr (S > 0) {
        const T* gates = static_cast<const T*>(p.gates) + (d * N + row) * S * H + at.unit;
#pragma unroll
        for (int k = 0; k < S; ++k) in.saved[k][j] = load_pair(gates + k * H, units, whole);
      }
      const T* grad_y = static_cast<const T*>(p.grad_y) + row * p.grad_y_stride + d * H + at.unit;
      in.grad_y[j] = load_pair(grad_y, p.grad_y ? units : 0, whole);
      if constexpr (Cell::kHasCell) {
        if (starts) {
          const Pair<T> c0 = load_pair(in_state(p.c0, b), units, whole);
          in.c_prev[j] = pair_of<float>(c0[0], c0[1]);
        } else {
          in.c_prev[j] = load_pair(in_cells(previous.first + b), units, whole);
        }
      } else if constexpr (Cell::kSplit) {
        in.h[j] = load_pair(starts ? in_state(p.h0, b) : in_output(p.y, previous.first + b), units, whole);
      } else {
        in.h[j] = load_pair(in_output(p.y, row), units, whole);
      }
    }
    return in;
  };

  // Of the lane's rows and units, as [j][u]: the gradient of h that does not come through the product (of a row
  // that is not active: its whole gradient), that of c, and c itself.
  float carried[2][2] = {}, dc[2][2] = {}, c[2][2] = {};
  bool has_c[2] = {false, false};  // c is that of the step to come
  StepOf now = schedule.at(T_steps - 1);
  Read in = {};
  const auto read_first = [&] {
    if (!at.finishes) return;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int b = at.row + j;
      const int units = b < B ? at.units : 0;
      const Pair<T> dh_n = load_pair(in_state(p.grad_hn, b), p.grad_hn ? units : 0, whole);
      carried[j][0] = dh_n[0];
      carried[j][1] = dh_n[1];
      if constexpr (Cell::kHasCell) {
        const Pair<T> dc_n = load_pair(in_state(p.grad_cn, b), p.grad_cn ? units : 0, whole);
        dc[j][0] = dc_n[0];
        dc[j][1] = dc_n[1];
      }
    }
    in = read(now, schedule.at(T_steps - 2));
  };
  // An LSTM's part of a cluster has the fewest registers left: sm_100 and sm_120 spilled. What is read before the
  // weights are there waits beside all of them and, of half types, more addresses than there is room for: those read
  // on the way to the cluster's barrier.
  constexpr bool kFewRegisters = Exchange::kTier == Tier::kCluster && Cell::kHasCell;
  constexpr bool kWeightsFirst = kFewRegisters && sizeof(T) == 2;
  if constexpr (!kWeightsFirst) read_first();
  product.load_weights(static_cast<const T*>(p.w_hh[d]), p.w_hh_stride[d], static_cast<int>(H), at);
  if constexpr (kWeightsFirst) read_first();
  const int publications = p.dh0 ? T_steps : T_steps - 1;
  if (!product.begin(publications)) return;

  // Gradient of h through the product, of publication i; nothing reaches the last step, nor a row from the later
  // one where it begins a new sequence.
  float through[4] = {};
  int begun = 0;  // `begins` of the step before
  // Before a step's: or a warp that finishes nothing, and takes nothing, would keep the last one's in registers.
  const auto drop = [&] {
    if constexpr (!kFewRegisters) return;
#pragma unroll
    for (int r = 0; r < 4; ++r) through[r] = 0;
  };
  const auto take = [&](int i) {
    product.take(i, at, through);
    if (begun) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (begun >> (r & 1) & 1) through[r] = product.poison();
      }
    }
  };

  for (int i = 0; i < T_steps; ++i) {  // step T-1-i of the direction's own time
    at.forget_addresses(H);

    drop();
    if (i > 0) take(i - 1);

    Pair<T> dgates[Gr][2];
    if (at.finishes) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const bool active = lane_rows.run(now, j), begins = in.begins >> j & 1;
        if constexpr (Cell::kHasCell) {
          if (active && !has_c[j]) {  // the row's last step: from here on c is what was c_prev
            const Pair<float> pair = load_pair(in_cells(now.first + at.row + j), at.units, whole);
            c[j][0] = pair[0];
            c[j][1] = pair[1];
          }
          if (p.grad_cells && active) {
            const float* of_c = p.grad_cells + (d * N + now.first + at.row + j) * H + at.unit;
            const Pair<float> pair = load_pair(of_c, at.units, whole);
            dc[j][0] += pair[0];
            dc[j][1] += pair[1];
          }
        }
        float of_row[2][Gr];
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const float dh = carried[j][u] + through[2 * u + j];
          float saved[S ? S : 1] = {};
          if constexpr (S > 0) {
#pragma unroll
            for (int k = 0; k < S; ++k) saved[k] = in.saved[k][j][u];
          }
          float c_prev = 0, h = 0;
          if constexpr (Cell::kHasCell) {
            c_prev = begins ? 0.0f : in.c_prev[j][u];
          } else {
            h = Cell::kSplit && begins ? 0.0f : in.h[j][u];
          }
          float dpre[G], drec = 0, dc_prev = 0, dh_prev = 0;
          cell_backward<Kind, M>(relu, saved, c_prev, c[j][u], h, h, dh + in.grad_y[j][u], dc[j][u], dpre, drec,
                                 dc_prev, dh_prev);
#pragma unroll
          for (int gate = 0; gate < G; ++gate) of_row[u][gate] = active ? dpre[gate] : 0.0f;
          if constexpr (Cell::kSplit) of_row[u][G] = active ? drec : 0.0f;
          carried[j][u] = begins ? 0.0f : active ? dh_prev : dh;
          if (active) dc[j][u] = begins ? 0.0f : dc_prev;
          if constexpr (Cell::kHasCell) {
            if (active) c[j][u] = in.c_prev[j][u];
          }
        }
        has_c[j] = active;
#pragma unroll
        for (int k = 0; k < Gr; ++k) dgates[k][j] = pair_of<T>(of_row[0][k], of_row[1][k]);
      }
      if (i < publications) {
        // The recurrent gates in torch's order: a GRU's last one has its recurrent part's gradient.
#pragma unroll
        for (int gate = 0; gate < G; ++gate) {
          product.write(i, gate, at, dgates[Cell::kSplit && gate == G - 1 ? G : gate]);
        }
      }
    }
    if (i < publications) product.publish(i, at);

    if (at.finishes) {
      begun = in.begins;

      // Behind the publication: nobody waits for these.
      if (i + 1 < T_steps) in = read(schedule.at(T_steps - 2 - i), schedule.at(T_steps - 3 - i));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (lane_rows.run(now, j)) {
          T* row = static_cast<T*>(p.dgates) + (d * N + now.first + at.row + j) * Gr * H + at.unit;
#pragma unroll
          for (int k = 0; k < Gr; ++k) {
            const int to = !Cell::kSplit || k == G ? k : k == G - 1 ? 0 : k + 1;  // GRU: n, r, z, rec
            store_pair(row + to * H, dgates[k][j], at.units, whole);
          }
        }
      }
    }
    now = schedule.at(T_steps - 2 - i);
  }

  drop();
  if (p.dh0) take(T_steps - 1);
  product.end();
  if (!at.finishes) return;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (at.row + j < B) {
      const int64_t state = (d * B + at.row + j) * H + at.unit;
      if (p.dh0) {
        store_pair(static_cast<T*>(p.dh0) + state,
                   pair_of<T>(carried[j][0] + through[j], carried[j][1] + through[2 + j]), at.units, whole);
      }
      if constexpr (Cell::kHasCell) {
        if (p.dc0) store_pair(static_cast<T*>(p.dc0) + state, pair_of<T>(dc[j][0], dc[j][1]), at.units, whole);
      }
    }
  }
}

}  // namespace fastrnn::cuda
