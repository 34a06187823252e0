// Recompute mode of the backward pass: a chunk's gates, which forward did not save, from x and the saved states;
// see backward.inl.
#pragma once
#include "cpu/rnn/backward.inl"

namespace fastrnn {
namespace {

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::pack_gates(int rank) {
  const int d = grid_.direction(rank);
  const DirectionWeights& weights = p_.weights[d];
  const Direction& dir = directions_[d];
  const Panels<T> gates{s_.H, 1};
  const Turns turns = packed_by(gates, rank);
  for (int64_t block = turns.begin; block < turns.end; block += turns.step) {
    Operand::pack(weights.w_ih, s_.I, s_.dtype, G, gates, block, s_.I, dir.gate_w_ih + block * gate_size(s_.I),
                  kPartGates);
    Operand::pack(weights.w_hh, s_.out_size(), s_.dtype, G, gates, block, s_.out_size(),
                  dir.gate_w_hh + block * gate_size(s_.out_size()), kPartGates);
    pack_gate_bias<T, C>(weights, s_, gates, block, dir.bias, dir.bias_rec);
  }
}

// The chunk's gates for this worker's rows and units, as forward computed them, from x and the
// saved states: no step waits for another.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::recompute_gates(int rank, const Chunk& chunk) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Worker& worker = workers_[rank];
  int64_t rows = 0;
  for (int64_t s = chunk.s_begin; s < chunk.s_end; ++s) {
    const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
    for (int64_t i = 0; i < n; ++i, ++rows) {
      const Slot slot = slot_at(d, t, batch_row(b, i));
      worker.own_rows[rows] = {slot0 + i, slot.c_prev, t, slot.row};
      // Others of this batch group find the same slot; one of them writes it for the end of the chunk.
      if (grid_.unit_group(rank) == 0) directions_[d].slots[slot0 + i] = slot;
      block_row<T, Operand>(slot.x, s_.I, s_.dtype, worker.x, own_rows_, rows);
      block_row<T, Operand>(slot.h_prev, s_.out_size(), s_.dtype, worker.h, own_rows_, rows);
    }
  }
  const Range blocks = own_blocks(units_, rank);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    for_tiles(Operand::tile_rows(kPartGates), 0, rows,
              [&](int64_t row, int height) { recompute_tile(rank, block, row, height); });
  }
}

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::recompute_tile(int rank, int64_t block, int64_t row, int height) {
  const Direction& dir = directions_[grid_.direction(rank)];
  const Worker& worker = workers_[rank];
  const int lanes = units_.lanes(block);
  alignas(64) T input[Operand::kTileSize * W], tile[Operand::kTileSize * W];
  // Where a tile holds a gate of row m: its parts lie one after the other.
  const auto at = [&](int m, int g) { return ((g / kPartGates * height + m) * kPartGates + g % kPartGates) * W; };
  const auto add = [&](T* sums, const E* rows, const E* weights, int64_t K) {
    for (int part = 0; part < kParts; ++part) {
      Operand::multiply(height, kPartGates, sums + part * height * kPartGates * W, rows + row * W, own_rows_ * W,
                        weights + (block * G + part * kPartGates) * W * Operand::depth(K), K, nullptr);
    }
  };
  for (int m = 0; m < height; ++m) {
    for (int g = 0; g < G; ++g) S::store(input + at(m, g), S::load(dir.bias + (block * G + g) * W));
  }
  add(input, worker.x, dir.gate_w_ih, s_.I);
  for (int m = 0; m < height; ++m) {
    for (int g = 0; g < G; ++g) {
      const bool split = C::kSplit && g == G - 1;
      S::store(tile + at(m, g), S::load(split ? dir.bias_rec + block * W : input + at(m, g)));
    }
  }
  add(tile, worker.h, dir.gate_w_hh, s_.out_size());
  for (int m = 0; m < height; ++m) {
    const OwnRow& own = worker.own_rows[row + m];
    V pre[G], saved[C::kSaved ? C::kSaved : 1], rec{}, h_prev{}, c_prev{}, c, h;
    for (int g = 0; g < G; ++g) pre[g] = S::load(tile + at(m, g));
    if constexpr (C::kSplit) {
      rec = pre[G - 1];
      pre[G - 1] = S::load(input + at(m, G - 1));
    }
    if constexpr (C::kHasCell) c_prev = S::load_n(own.c_prev + block * W, lanes);
    // Where h is not saved, it is not used, and h_prev enters nothing else.
    if constexpr (C::kSplit && C::State::kSaved > 0)
      h_prev = Operand::load(worker.h + (block * own_rows_ + row + m) * W);
    forward_unit<C>({grid_.direction(rank), own.t, own.row, block * W, lanes}, pre, rec, h_prev, c_prev, saved, c, h);
    for (int k = 0; k < C::kSaved; ++k) {
      S::store(dir.gates + (own.slot * C::kSaved + k) * row_length() + block * W, saved[k]);
    }
  }
}

}  // namespace
}  // namespace fastrnn
