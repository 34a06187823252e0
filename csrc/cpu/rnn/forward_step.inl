// One step of the forward pass by its stages (cells/cell.h); see forward.inl.
#pragma once
#include "cpu/rnn/forward_input.inl"

namespace fastrnn {
namespace {

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::step(int rank, int64_t s, int64_t s_in_chunk) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const int64_t t = time_of(d, s);
  // Every other step runs through the panels backwards: it begins with those that the step before left
  // in the cache, which holds a part of weights that are larger than it.
  step_panels(rank, s, s_in_chunk, own_panels(units_, rank), s & 1);
  hand_over(rank, s, t, rows_at(b, t));
}

// `next` comes after these panels (-1: nothing of the step does), and is the first of W_ih then.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::step_panels(int rank, int64_t s, int64_t s_in_chunk, Range panels, bool back,
                                                     int64_t next) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Direction& dir = directions_[d];
  const int64_t t = time_of(d, s), n = rows_at(b, t);
  const int64_t slot0 = workers_[rank].slots[s_in_chunk], last = back ? panels.begin : panels.end - 1;
  for (int64_t i = panels.begin; i < panels.end; ++i) {
    const int64_t panel = back ? panels.begin + panels.end - 1 - i : i;
    const Lie lie = Weights::lie_of(units_, panel);
    if constexpr (kRowTiles > 0) {
      if (n == 1 && in_rows(panel)) {
        int tiles = 1;
        while (tiles < kRowTiles && i + tiles < panels.end && (back || in_rows(panel + tiles))) ++tiles;
        step_row(rank, s, t, back ? panel - tiles + 1 : panel, tiles, slot0);
        i += tiles - 1;
        continue;
      }
    }
    const E* weights = nullptr;
    const void* after = nullptr;
    PanelPrefetch ahead;
    if (state_just_in_time_) {
      Weights::pack_panel(p_.weights[d].w_hh, s_, s_.out_size(), panel, workers_[rank].panel);
      weights = workers_[rank].panel;
    } else if (in_lanes_) {
      // where they lie, too
    } else if (!plan_.direct) {
      weights = dir.w_hh + units_.first_block(panel) * panel_size(s_.out_size());
      if (panel != last) {
        ahead = next_panel(dir.w_hh, panel, last, s_.out_size());
      } else if (next >= 0 && dir.w_ih) {
        ahead = far_panel(dir.w_ih, next, s_.I);
      }
    } else if (panel != last) {
      after = first_row(p_.weights[d].w_hh, s_.out_size(), back ? panel - 1 : panel + 1);
    } else if (next >= 0) {
      after = first_row(p_.weights[d].w_ih, s_.I, next);
    }
    const int most = in_lanes_ ? static_cast<int>(n) : plan_.direct ? kDotRows : Operand::tile_rows(lie.vectors);
    for_tiles(most, 0, n, [&](int64_t row, int height) {
      step_tile(rank, weights, s, t, panel, lie, row, height, slot0 + row, after, ahead);
    });
  }
}

// The last states of rows that end at step t, of n that run: c, and without a projection h.
template <class T, template <class> class CellOf, class Operand>
FASTRNN_INLINE void Forward<T, CellOf, Operand>::hand_over(int rank, int64_t s, int64_t t, int64_t n) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  for (int64_t i = first_ending(d, b, t, n); i < n; ++i) {
    const Range blocks = own_blocks(units_, rank);
    const int64_t row = d * s_.B + s_.state_row(batch_row(b, i));
    const Group& group = groups_[grid_.group(rank)];
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int lanes = units_.lanes(block);
      const int64_t from = (block * group_rows_ + i) * W, to = row * s_.H + block * W;
      if constexpr (C::kHasCell) store_as<T>(p_.cn, to, S::load(group.c + from), lanes, s_.dtype);
      if (!s_.P) {
        const V h = C::kVariant ? S::load(group.h_state + from) : Operand::load(group.h[(s + 1) & 1] + from);
        store_as<T>(p_.hn, to, h, lanes, s_.dtype);
      }
    }
  }
}

// Up to kRowTiles tiles of one row at once, whose panels follow each other and are whole.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::step_row(int rank, int64_t s, int64_t t, int64_t panel, int tiles,
                                                  int64_t slot) {
  if constexpr (kRowTiles > 0) {
    constexpr int kVectors = kPartGates * Weights::kUnits, kTile = kParts * kVectors * W;
    const Direction& dir = directions_[grid_.direction(rank)];
    const int64_t K = s_.out_size(), first = units_.first_block(panel);
    const Lie lie = Weights::lie_of(units_, panel);
    const T* gx = workers_[rank].gx + gx_offset(rank, panel) + slot * kVectors * W;
    const int64_t part = chunk_rows_ * kVectors * W;
    alignas(64) T sums[kRowTiles * kTile];
    for (int p = 0; p < tiles * kParts; ++p) {
      copy_vectors(gx + p * part, sums + p * kVectors * W, kVectors);
      if constexpr (C::kSplit) {
        S::store(sums + p * kVectors * W + lie.at(0, 1, 0, G - 1), S::load(dir.bias_rec + (first + p) * W));
      }
    }
    multiply_panels<T, kVectors>(tiles * kParts, sums, kVectors * W, groups_[grid_.group(rank)].h[s & 1],
                                 group_rows_ * W, dir.w_hh + first * panel_size(K), K * kVectors * W, K);
    for (int j = 0; j < tiles; ++j) {
      finish_tile(sums + j * kTile, gx + j * kParts * part, rank, s, t, panel + j, lie, 0, 1);
    }
  }
}

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::step_tile(int rank, const E* weights, int64_t s, int64_t t, int64_t panel,
                                                   const Lie& lie, int64_t row, int height, int64_t slot,
                                                   const void* after, PanelPrefetch& ahead) {
  const Direction& dir = directions_[grid_.direction(rank)];
  const Group& group = groups_[grid_.group(rank)];
  const int64_t first = units_.first_block(panel);
  const int of_part = lie.vectors;
  const T* gx = workers_[rank].gx + gx_offset(rank, panel) + slot * of_part * W;
  alignas(64) T some[(Operand::kTileSize + 1) * W];  // a vector begins where a gate does, and may end behind the last
  T* const tile = in_lanes_ ? workers_[rank].sums : some;
  const bool copies = C::kSplit || !weights;  // the tile begins with more than gx, or is no kernel's
  for (int part = 0; copies && part < kParts; ++part) {
    copy_vectors(gx + part * chunk_rows_ * of_part * W, tile + part * height * of_part * W, height * of_part);
  }
  if constexpr (C::kSplit) {
    for (int m = 0; m < height; ++m) {
      for (int u = 0; u < lie.units; ++u) {
        S::store_n(tile + lie.at(m, height, u, G - 1), S::load(dir.bias_rec + (first + u) * W), lie.gate_step);
      }
    }
  }
  for (int part = 0; weights && part < kParts; ++part) {
    T* const sums = tile + part * height * of_part * W;
    multiply_from(height, of_part, sums, copies ? sums : gx + part * chunk_rows_ * of_part * W, of_part * W,
                  group.h[s & 1] + row * W, group_rows_ * W,
                  weights + part * of_part * W * Operand::depth(s_.out_size()), s_.out_size(),
                  ahead.slice(s_.out_size()));
  }
  if (in_lanes_) {
    add_lanes(p_.weights[grid_.direction(rank)].w_hh, s_.out_size(), panel, workers_[rank].h_lanes, height, tile,
              height);
  } else if (!weights) {
    add_dots(p_.weights[grid_.direction(rank)].w_hh, s_.out_size(), panel, after, height, group.h[s & 1] + row * W,
             group_rows_ * W, tile, height);
  }
  finish_tile(tile, gx, rank, s, t, panel, lie, row, height);
}

// The stages from the gates on: what the product left in a tile becomes the new state. gx holds the input part of a
// split gate.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::finish_tile(const T* tile, const T* gx, int rank, int64_t s, int64_t t,
                                                     int64_t panel, const Lie& lie, int64_t row, int height) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Group& group = groups_[grid_.group(rank)];
  const int64_t out = s_.out_size(), N = s_.rows();
  const E* h_in = group.h[s & 1];
  E* h_out = s_.P ? group.m : group.h[(s + 1) & 1];
  for (int u = 0; u < lie.units; ++u) {
    const int64_t block = units_.first_block(panel) + u;
    const int lanes = units_.lanes(block);
    for (int m = 0; m < height; ++m) {
      const int64_t at = (block * group_rows_ + row + m) * W;
      const int64_t batch_b = batch_row(b, row + m);
      const int64_t y_row = s_.tensor_row(t, batch_b);
      const bool cut = restarts(d, t, batch_b);
      V pre[G], saved[C::kSaved ? C::kSaved : 1], rec{}, h_prev{}, c_prev{}, c, h;
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) pre[g] = S::load(tile + lie.at(m, height, u, g));
      if constexpr (C::kSplit) {
        rec = pre[G - 1];
        static_assert(kParts == 1);
        pre[G - 1] = S::load(gx + lie.at(m, height, u, G - 1));
        h_prev = kKeepsState ? S::load(group.h_state + at) : Operand::load(h_in + at);
      }
      if constexpr (C::kHasCell) c_prev = S::load(group.c + at);
      const UnitAt where{d, t, y_row, block * W, lanes};
      forward_unit<C>(where, pre, rec, h_prev, c_prev, saved, c, h);
      if constexpr (C::kHasCell) {
        S::store(group.c + at, cut ? V{} : c);
        if (p_.cells) S::store_n(static_cast<T*>(p_.cells) + (d * N + y_row) * s_.H + block * W, c, lanes);
      }
      if constexpr (C::kSaved > 0) {
        if (p_.gates) {
          const int64_t base = (d * N + y_row) * C::kSaved * s_.H + block * W;
#pragma GCC unroll 4
          for (int k = 0; k < C::kSaved; ++k) store_as<T>(p_.gates, base + k * s_.H, saved[k], lanes, s_.dtype);
        }
      }
      if (s_.P) {
        Operand::store(h_out + at, h);
        Operand::end_row(h_out + at, lanes);
      } else {
        put_output(where, batch_b, (y_row * s_.D + d) * out + block * W, cut, h_in + at, h_out + at,
                   group.h_state + at, h);
      }
    }
  }
}

// The output's half of the state stage: a block of the output's units of a row, from the candidate of h. h_in, h_out
// and h_state are its places in the group's buffers. What is needed of the layer comes along: after a store, which
// may go anywhere, it would be read again.
template <class T, template <class> class CellOf, class Operand>
FASTRNN_INLINE void Forward<T, CellOf, Operand>::put_output(const UnitAt& where, int64_t b, int64_t y_at, bool cut,
                                                            const E* h_in, E* h_out, T* h_state, V h) {
  if constexpr (C::State::kKeepsH) {
    C::State::output_forward(where, kKeepsState ? S::load(h_state) : Operand::load(h_in), h);
  }
  V operand = h;
  if constexpr (C::kVariant) {
    const TensorRows& keep = p_.masks.keep_h;
    if (keep.data) {
      const int64_t at = row_start(s_, keep, where.t, b) + where.direction * s_.out_size() + where.unit;
      Zoneout<VectorMath<T>>::forward(load_as<T>(keep.data, at, where.lanes, s_.dtype), S::load(h_state), h);
    }
    operand = h;
    if (p_.masks.recurrent) operand *= recurrent_mask(where.direction, s_.row_of(b), where.unit, where.lanes);
  }
  Operand::store(h_out, cut ? V{} : operand);
  Operand::end_row(h_out, where.lanes);
  if constexpr (kKeepsState) S::store(h_state, cut ? V{} : h);
  store_as<T>(p_.y, y_at, h, where.lanes, s_.dtype);
}

// ---- the state stage's product: a projection of the output (LSTM with proj_size)
// -----------------------------------------

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::project_output(int rank, int64_t s) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const int64_t t = time_of(d, s), n = rows_at(b, t);
  const Range own = own_panels(outputs_, rank);
  for (int64_t panel = own.begin; panel < own.end; ++panel) {
    const int vectors = outputs_.blocks_of(panel);
    for_tiles(Operand::tile_rows(vectors), 0, n,
              [&](int64_t row, int height) { output_tile(rank, s, t, panel, vectors, row, height); });
  }
  const Group& group = groups_[grid_.group(rank)];
  const E* h = group.h[(s + 1) & 1];
  for (int64_t i = first_ending(d, b, t, n); i < n; ++i) {
    const Range blocks = own_blocks(outputs_, rank);
    const int64_t row = d * s_.B + s_.state_row(batch_row(b, i));
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int64_t from = (block * group_rows_ + i) * W;
      store_as<T>(p_.hn, row * s_.P + block * W,
                  C::kVariant ? S::load(group.h_state + from) : Operand::load(h + from), outputs_.lanes(block),
                  s_.dtype);
    }
  }
}

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::output_tile(int rank, int64_t s, int64_t t, int64_t panel, int vectors,
                                                     int64_t row, int height) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Group& group = groups_[grid_.group(rank)];
  const int64_t first = outputs_.first_block(panel);
  alignas(64) T tile[Operand::kTileSize * W] = {};
  Operand::multiply(height, vectors, tile, group.m + row * W, group_rows_ * W,
                    directions_[d].w_hr + first * W * Operand::depth(s_.H), s_.H, nullptr);
  for (int m = 0; m < height; ++m) {
    const int64_t batch_b = batch_row(b, row + m), y_row = s_.tensor_row(t, batch_b);
    const bool cut = restarts(d, t, batch_b);
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = ((first + v) * group_rows_ + row + m) * W, unit = (first + v) * W;
      put_output({d, t, y_row, unit, outputs_.lanes(first + v)}, batch_b, (y_row * s_.D + d) * s_.P + unit, cut,
                 group.h[s & 1] + at, group.h[(s + 1) & 1] + at, group.h_state + at,
                 S::load(tile + (m * vectors + v) * W));
    }
  }
}

}  // namespace
}  // namespace fastrnn
