// What the backward pass does with a whole chunk of gate gradients at once: grad_x, the gradients of the weights
// and biases; see backward.inl.
#pragma once
#include "cpu/rnn/backward.inl"

namespace fastrnn {
namespace {

// This worker's blocks of what the gradients of weights multiply, from terms of units to terms of rows.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::join_rows(int rank, const Chunk& chunk) {
  if constexpr (Operand::kJoins) {
    const Direction& dir = directions_[grid_.direction(rank)];
    const int64_t blocks = units_.blocks();
    const auto join = [&](E* operand, int64_t block) {
      Operand::join_rows(operand + block * chunk_rows_ * W, chunk.rows);
    };
    const Range own = share_of(rank, G * blocks);
    for (int64_t i = own.begin; i < own.end; ++i) {
      join(dir.dg, i);
      const int g = static_cast<int>(i / blocks);
      if (recurrent_column(g) != g) join(dir.dg, recurrent_column(g) * blocks + i % blocks);
    }
    const Range outputs = share_of(rank, s_.P ? outputs_.blocks() : 0);
    for (int64_t i = outputs.begin; i < outputs.end; ++i) join(dir.dh_out, i);
  }
}

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::finish_chunk(int rank, const Chunk& chunk) {
  const int d = grid_.direction(rank);
  const Direction& dir = directions_[d];
  if (!p_.need_weights) return;
  if constexpr (C::kVariant) return finish_stages(rank, chunk);
  const WeightGradients& grads = p_.grad_weights[d];
  const int64_t blocks = units_.blocks();
  const Range gate_blocks = share_of(rank, G * blocks);
  const auto input_row = [&](int64_t slot) { return dir.slots[slot].x; };
  const auto state_row = [&](int64_t slot) { return dir.slots[slot].h_prev; };
  const auto gates = [&](int64_t i) { return i; };
  const auto recurrent_gates = [&](int64_t i) {
    return recurrent_column(static_cast<int>(i / blocks)) * blocks + i % blocks;
  };
  WeightGradient<T, Operand> gradient{chunk.rows, chunk_rows_,          chunk.first,
                                      s_.dtype,   workers_[rank].panel, plan_.near_bytes};
  gradient.add(dir.dg, units_, gate_blocks.begin, gate_blocks.end, gates, s_.I, input_row,
               static_cast<T*>(grads.w_ih));
  gradient.add(dir.dg, units_, gate_blocks.begin, gate_blocks.end, recurrent_gates, s_.out_size(), state_row,
               static_cast<T*>(grads.w_hh));
  if (s_.bias) {
    gradient.add_bias(dir.dg, units_, gate_blocks.begin, gate_blocks.end, gates, static_cast<T*>(grads.b_ih));
    gradient.add_bias(dir.dg, units_, gate_blocks.begin, gate_blocks.end, recurrent_gates,
                      static_cast<T*>(grads.b_hh));
  }
  if (s_.P) {
    const Range own = share_of(rank, outputs_.blocks());
    const auto hidden_row = [&](int64_t slot) { return reinterpret_cast<const char*>(dir.m + slot * row_length()); };
    gradient.right_dtype = Operand::kDtype;
    gradient.add(dir.dh_out, outputs_, own.begin, own.end, gates, s_.H, hidden_row, static_cast<T*>(grads.w_hr));
  }
}

// Gates [g0, g1) of a panel of W_ih. Every chunk packs it again, into a buffer that stays in the L2
// cache: a thousand rows repay that, and the whole of the packed weight would be as large as itself.
template <class T, template <class> class CellOf, class Operand>
inline auto Backward<T, CellOf, Operand>::input_panel(int rank, int64_t p, int g0, int g1) const -> Panel {
  const void* weight = p_.weights[grid_.direction(rank)].w_ih;
  if (natural(inputs_, p)) {
    return {static_cast<const E*>(weight) + inputs_.first_block(p) * W, s_.I};
  }
  const char* rows = static_cast<const char*>(weight) + g0 * s_.H * s_.I * static_cast<int64_t>(size_of(s_.dtype));
  E* packed = workers_[rank].w_ih;
  Operand::pack_rows(rows, s_.I, s_.dtype, inputs_, p, g1 - g0, s_.H, packed);
  return {packed, inputs_.blocks_of(p) * W, g0};
}

// grad_x = dg W_ih for this worker's share of the chunk's rows.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::input_gradient(int rank, const Chunk& chunk) {
  const int d = grid_.direction(rank);
  const Direction& dir = directions_[d];
  const Range rows = share_of(rank, chunk.rows);
  for (int64_t p = 0; p < inputs_.count(); ++p) {
    const int vectors = inputs_.blocks_of(p), pass = gates_a_pass(vectors);
    const int64_t first = inputs_.first_block(p);
    for (int g = 0; g < G; g += pass) {
      const Panel panel = input_panel(rank, p, g, min_of(G, g + pass));
      PanelPrefetch ahead;  // the panel lies in the cache already
      for_tiles(Operand::tile_rows(vectors), rows.begin, rows.end, [&](int64_t slot, int height) {
        // Over several passes the sums wait in this worker's own buffer.
        T* tile = workers_[rank].tile + (slot - rows.begin) * kPanelVectors * W;
        if (g == 0) {
          for (int i = 0; i < height * vectors; ++i) S::store(tile + i * W, V{});
        }
        add_gates(tile, height, vectors, dir, slot, panel, g, min_of(G, g + pass), false, ahead);
        if (g + pass < G) return;
        for (int m = 0; m < height; ++m) {
          const int64_t to = dir.slots[slot + m].row * s_.I + first * W;
          for (int v = 0; v < vectors; ++v) {
            store_as<T>(p_.grad_x[d], to + v * W, S::load(tile + (m * vectors + v) * W), inputs_.lanes(first + v),
                        s_.dtype);
          }
        }
      });
    }
  }
}

}  // namespace
}  // namespace fastrnn
