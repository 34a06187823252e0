// One step of the backward pass by its stages (cells/cell.h) in reverse: from the gradient of h_t to the gates' dg_t
// and on to dh_{t-1}; see backward.inl.
#pragma once
#include "cpu/rnn/backward.inl"

namespace fastrnn {
namespace {

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::pointwise(int rank, const Chunk& chunk, int64_t s) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Direction& dir = directions_[d];
  const Group& group = groups_[grid_.group(rank)];
  const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
  const Range blocks = own_blocks(units_, rank);
  const int64_t element = static_cast<int64_t>(size_of(s_.dtype));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row_b = batch_row(b, i);
    const Slot slot = slot_at(d, t, row_b);
    if (grid_.unit_group(rank) == 0) dir.slots[slot0 + i] = slot;
    const char* dy = p_.grad_y.data && !s_.P ? static_cast<const char*>(p_.grad_y.data) +
                                                   (row_start(s_, p_.grad_y, t, row_b) + d * s_.H) * element
                                             : nullptr;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int lanes = units_.lanes(block);
      const int64_t at = (block * group_rows_ + i) * W, unit = block * W;
      const UnitAt where{d, t, slot.row, unit, lanes};
      V saved[C::kSaved ? C::kSaved : 1], c{}, c_prev{}, h{}, h_prev{}, dc{}, dpre[G], drec, dc_prev, dh_prev;
      if constexpr (C::kSaved > 0) {
#pragma GCC unroll 4
        for (int k = 0; k < C::kSaved; ++k) {
          saved[k] = recompute_ ? S::load(dir.gates + ((slot0 + i) * C::kSaved + k) * row_length() + unit)
                                : load_as<T>(p_.gates, ((d * s_.rows() + slot.row) * C::kSaved + k) * s_.H + unit,
                                             lanes, s_.dtype);
        }
      }
      if constexpr (kNeedsOutput<C>) {
        h = load_as<T>(p_.y, (slot.row * s_.D + d) * s_.H + unit, lanes, s_.dtype);
      }
      if constexpr (C::kSplit) h_prev = load_as<T>(slot.h_prev, unit, lanes, s_.dtype);
      if constexpr (C::kHasCell) {
        c = S::load_n(static_cast<const T*>(p_.cells) + (d * s_.rows() + slot.row) * s_.H + unit, lanes);
        c_prev = S::load_n(slot.c_prev + unit, lanes);
        dc = S::load(group.dc + at);
        if (p_.grad_cells) {
          dc += S::load_n(static_cast<const T*>(p_.grad_cells) + (d * s_.rows() + slot.row) * s_.H + unit, lanes);
        }
      }
      V dh = S::load((s_.P ? group.dm : group.dh) + at);
      if (dy) dh += load_as<T>(dy, unit, lanes, s_.dtype);
      V dh_kept{};
      if constexpr (C::State::kKeepsH) {
        if (!s_.P) C::State::output_backward(where, dh, dh_kept);
      }
      backward_unit<C>(where, saved, c_prev, c, h_prev, h, dh, dc, dpre, drec, dc_prev, dh_prev);
      if constexpr (C::State::kKeepsH) dh_prev += dh_kept;
      if constexpr (C::kHasCell) {
        if (s_.P && p_.need_weights) {
          Operand::store(dir.m + (slot0 + i) * row_length() + unit, C::output(saved, c));
        }
      }
      E* out = dir.dg + (block * chunk_rows_ + slot0 + i) * W;
      const int64_t gate_stride = units_.blocks() * chunk_rows_ * W;
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) Operand::store(out + g * gate_stride, dpre[g]);
      if constexpr (C::kSplit) Operand::store(out + G * gate_stride, drec);
      if constexpr (Operand::kJoins) {
        for (int g = 0; g < kColumns; ++g) Operand::end_row(out + g * gate_stride, lanes);
      }
      if constexpr (C::kHasCell) S::store(group.dc + at, slot.cut ? V{} : dc_prev);
      if (!s_.P) S::store(group.dh + at, dh_prev);
    }
  }
}

// tile += sum over gates [g0, g1) of dg * weight, for `rows` chunk rows from `slot` on.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::add_gates(T* tile, int rows, int vectors, const Direction& dir,
                                                    int64_t slot, Panel panel, int g0, int g1, bool recurrent,
                                                    PanelPrefetch& ahead) const {
  for (int g = g0; g < g1; ++g) {
    const int column = recurrent ? recurrent_column(g) : g;
    Operand::multiply(rows, vectors, tile, dir.dg + (column * units_.blocks() * chunk_rows_ + slot) * W,
                      chunk_rows_ * W, panel.data + (g - panel.first_gate) * Operand::depth(s_.H) * panel.ld,
                      panel.ld, s_.H, ahead.slice(s_.H));
  }
}

// dh_{t-1} = (its direct part) + dg_t W_hh
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::propagate(int rank, const Chunk& chunk, int64_t s) {
  if (s == 0 && !p_.grad_h0) return;
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
  const Direction& dir = directions_[d];
  const Range own = own_panels(outputs_, rank);
  for (int64_t i = own.begin; i < own.end; ++i) {
    const int64_t p = s & 1 ? own.begin + own.end - 1 - i : i;  // to and fro, as in the forward pass
    const int vectors = outputs_.blocks_of(p), pass = gates_a_pass(vectors);
    const Panel panel = panel_of(outputs_, p, dir.w_hh, p_.weights[d].w_hh, G * Operand::depth(s_.H));
    for (int g = 0; g < G; g += pass) {
      PanelPrefetch ahead = next_gates(outputs_, panel, vectors, g, pass);
      for_tiles(Operand::tile_rows(vectors), 0, n, [&](int64_t row, int height) {
        T* dh = groups_[grid_.group(rank)].dh + (outputs_.first_block(p) * group_rows_ + row) * W;
        // With a projection, dh went into dm and is spent, but for what the state stage keeps of it.
        const bool from_zero = !C::State::kKeepsH && s_.P && g == 0;
        alignas(64) T tile[Operand::kTileSize * W];
        for (int v = 0; v < vectors; ++v) {
          for (int m = 0; m < height; ++m) {
            S::store(tile + (m * vectors + v) * W, from_zero ? V{} : S::load(dh + (v * group_rows_ + m) * W));
          }
        }
        add_gates(tile, height, vectors, dir, slot0 + row, panel, g, min_of(G, g + pass), true, ahead);
        store_blocked(tile, height, vectors, dh);
      });
    }
  }
  if (s_.resets) stop_at_resets(rank, slot0, n);
}

// No gradient leaves a sequence through its beginning; dc has stopped in pointwise().
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::stop_at_resets(int rank, int64_t slot0, int64_t rows) {
  const Range blocks = own_blocks(outputs_, rank);
  for (int64_t i = 0; i < rows; ++i) {
    if (!directions_[grid_.direction(rank)].slots[slot0 + i].cut) continue;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      S::store(groups_[grid_.group(rank)].dh + (block * group_rows_ + i) * W, V{});
    }
  }
}

// A tile into a group's blocked buffer.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::store_blocked(const T* tile, int rows, int vectors, T* to) const {
  for (int v = 0; v < vectors; ++v) {
    for (int m = 0; m < rows; ++m) S::store(to + (v * group_rows_ + m) * W, S::load(tile + (m * vectors + v) * W));
  }
}

// ---- the state stage's product: a projection (LSTM with proj_size)
// -------------------------------------------------------

// The whole gradient of the projected output at this step, from later steps and from grad_y, and through the output's
// half of the state stage.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::gather_output_gradient(int rank, const Chunk& chunk, int64_t s) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Direction& dir = directions_[d];
  const Group& group = groups_[grid_.group(rank)];
  const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
  const Range blocks = own_blocks(outputs_, rank);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    for (int64_t i = 0; i < n; ++i) {
      V dh = S::load(group.dh + (block * group_rows_ + i) * W);
      if (p_.grad_y.data) {
        const int64_t at = row_start(s_, p_.grad_y, t, batch_row(b, i)) + d * s_.P + block * W;
        dh += load_as<T>(p_.grad_y.data, at, outputs_.lanes(block), s_.dtype);
      }
      if constexpr (C::kVariant) {
        V dh_kept{};
        const TensorRows& keep = p_.masks.keep_h;
        if (keep.data) {
          const int64_t at = row_start(s_, keep, t, batch_row(b, i)) + d * s_.P + block * W;
          Zoneout<VectorMath<T>>::backward(load_as<T>(keep.data, at, outputs_.lanes(block), s_.dtype), dh, dh_kept);
        }
        S::store(group.dh + (block * group_rows_ + i) * W, dh_kept);
      }
      if constexpr (C::State::kKeepsH) {
        V dh_kept{};
        const int64_t row = s_.tensor_row(t, batch_row(b, i));
        C::State::output_backward({d, t, row, block * W, outputs_.lanes(block)}, dh, dh_kept);
        S::store(group.dh + (block * group_rows_ + i) * W, dh_kept);
      }
      E* const out = dir.dh_out + (block * chunk_rows_ + slot0 + i) * W;
      Operand::store(out, dh);
      Operand::end_row(out, outputs_.lanes(block));
    }
  }
}

// dm = dh W_hr
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::project_back(int rank, const Chunk& chunk, int64_t s) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
  const Range own = own_panels(units_, rank);
  for (int64_t p = own.begin; p < own.end; ++p) {
    const int vectors = units_.blocks_of(p);
    const Panel panel = panel_of(units_, p, directions_[d].w_hr, p_.weights[d].w_hr, Operand::depth(s_.P));
    for_tiles(Operand::tile_rows(vectors), 0, n, [&](int64_t row, int height) {
      alignas(64) T tile[Operand::kTileSize * W] = {};
      Operand::multiply(height, vectors, tile, directions_[d].dh_out + (slot0 + row) * W, chunk_rows_ * W, panel.data,
                        panel.ld, s_.P, nullptr);
      store_blocked(tile, height, vectors,
                    groups_[grid_.group(rank)].dm + (units_.first_block(p) * group_rows_ + row) * W);
    });
  }
}

}  // namespace
}  // namespace fastrnn
