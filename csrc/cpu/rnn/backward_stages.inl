// The stages of a variant's step back (cells/policies/stages.h), in the order in which retreat() calls them; see
// backward.inl.
#pragma once
#include "cpu/rnn/backward_step.inl"

namespace fastrnn {
namespace {

// ---- memory and weights -----------------------------------------------------------------------------

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::lay_out_stages(int direction) {
  Stages& stages = stages_[direction];
  const int64_t width = units_.blocks() * W, rows = chunk_rows_ * outputs_.blocks() * W;
  stages.w_hh = arena_.take<T>(on().heads > 1 ? G * width * Heads<T>(s_).depth(outputs_, s_.H) : 0);
  for (T*& vector : stages.vectors) vector = arena_.take<T>(on().peephole || on().norm ? width : 0);
  const bool wanted = p_.need_weights && (on().recurrent_mask || on().reset_before);
  stages.h_rows = arena_.take<T>(wanted ? rows : 0);
  stages.reset_rows = arena_.take<T>(wanted && on().reset_before ? rows : 0);
}

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::lay_out_stages(Group& group) {
  group.d_reset_h = arena_.take<T>(on().reset_before ? outputs_.blocks() * group_rows_ * W : 0);
  const int64_t sums = on().norm ? grid_.unit_groups * group_rows_ : 0;
  group.x_sums = arena_.take<NormSums>(sums);
  group.h_sums = arena_.take<NormSums>(sums);
  group.c_sums = arena_.take<NormSums>(sums);
}

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::lay_out_stages(Worker& worker, Range own) {
  const int64_t width = (own.end - own.begin) * W;
  worker.vector_sums = arena_.take<T>(has_vectors() ? kVectorSums * width : 0);
  worker.vector_totals = arena_.take<double>(has_vectors() ? kVectorSums * width : 0);
  worker.moments = arena_.take<RowMoments<T>>(on().norm ? 3 * group_rows_ : 0);
  worker.d_out_gate = arena_.take<T>(on().norm && C::kHasCell ? width * group_rows_ : 0);
  worker.d_seen = arena_.take<T>(on().norm && C::kHasCell ? width * group_rows_ : 0);
}

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::pack_stages(int rank) {
  const int d = grid_.direction(rank);
  if (on().heads > 1) {
    const Heads<T> heads(s_);
    const int64_t depth = heads.depth(outputs_, s_.H);
    const Turns turns = packed_by(outputs_, rank);
    for (int64_t panel = turns.begin; panel < turns.end; panel += turns.step) {
      heads.pack_rows(p_.weights[d].w_hh, s_.dtype, G, outputs_, panel,
                      stages_[d].w_hh + outputs_.first_block(panel) * W * G * depth);
    }
  }
  load_stage_vectors<T, G>(p_.weights[d], s_, units_, share_of(rank, units_.blocks()), stages_[d].vectors);
  if (!has_vectors()) return;
  const Range own = own_blocks(units_, rank);
  for (int64_t i = 0; i < kVectorSums * (own.end - own.begin) * W; ++i) {
    workers_[rank].vector_sums[i] = 0;
    workers_[rank].vector_totals[i] = 0;
  }
}

// ---- the step ---------------------------------------------------------------------------------------

template <class T, template <class> class CellOf, class Operand>
template <class Workers, class ChunkOf>
__attribute__((noinline)) void Backward<T, CellOf, Operand>::retreat_stages(Workers& crew, ChunkOf&& chunk_of,
                                                                            int64_t s) {
  if (on().norm && C::kHasCell) {
    crew.each([&](int r) { emit_backward(r, chunk_of(r), s); });
    crew.meet_group();  // the sums of what reaches the normalised c are whole
  }
  crew.each([&](int r) { units_backward(r, chunk_of(r), s); });
  if (on().norm) {
    crew.meet_group();  // the sums of what reaches the normalised products are whole
    crew.each([&](int r) { norm_product(r, chunk_of(r), s); });
  }
  if (on().reset_before) {
    crew.meet_group();  // n's gradient is whole, which the second phase's product multiplies
    crew.each([&](int r) { reset_backward(r, chunk_of(r), s); });
  }
  crew.meet_group();  // every gate of dg_t is written before anyone multiplies it by W_hh
  crew.each([&](int r) { propagate_stages(r, chunk_of(r), s); });
}

template <class T, template <class> class CellOf, class Operand>
inline auto Backward<T, CellOf, Operand>::recurrent_mask(int direction, int64_t row, int64_t unit, int lanes) const
    -> V {
  if (!p_.masks.recurrent) return S::set(1);
  return load_as<T>(p_.masks.recurrent, (direction * s_.B + row) * s_.out_size() + unit, lanes, s_.dtype);
}

// What forward saved of a row.
template <class T, template <class> class CellOf, class Operand>
inline const char* Backward<T, CellOf, Operand>::saved_row(int direction, int64_t row) const {
  const int64_t all = C::kSaved + (on().norm ? 2 * G : 0);
  return static_cast<const char*>(p_.gates) +
         (direction * s_.rows() + row) * all * s_.H * static_cast<int64_t>(size_of(s_.dtype));
}
// Value k of a block of it.
template <class T, template <class> class CellOf, class Operand>
FASTRNN_INLINE auto Backward<T, CellOf, Operand>::saved_at(const char* row, int k, int64_t block, int lanes) const
    -> V {
  return load_as<T>(row, k * s_.H + block * W, lanes, s_.dtype);
}

// Asks for a block of what forward saved of a row. It comes from memory, step after step, and a row's values lie in
// too many places for the processor to see them coming.
template <class T, template <class> class CellOf, class Operand>
FASTRNN_INLINE void Backward<T, CellOf, Operand>::fetch_saved(const char* row, int64_t block) const {
  const int all = C::kSaved + (on().norm ? 2 * G : 0);
  const int64_t element = static_cast<int64_t>(size_of(s_.dtype));
  for (int k = 0; k < all; ++k) __builtin_prefetch(row + (k * s_.H + block * W) * element);
}

// The candidate of c: c itself where nothing of the old one stays.
template <class T, template <class> class CellOf, class Operand>
inline auto Backward<T, CellOf, Operand>::candidate_at(int direction, const Slot& slot, int64_t, int64_t block) const
    -> V {
  if constexpr (C::kHasCell) {
    const int lanes = units_.lanes(block);
    if (p_.masks.keep_c.data) {
      const char* row = saved_row(direction, slot.row);
      const V saved[3] = {saved_at(row, 0, block, lanes), saved_at(row, 1, block, lanes),
                          saved_at(row, 2, block, lanes)};
      return C::candidate(saved, S::load_n(slot.c_prev + block * W, lanes));
    }
    return S::load_n(static_cast<const T*>(p_.cells) + (direction * s_.rows() + slot.row) * s_.H + block * W, lanes);
  }
  return V{};
}

// The gradient of the candidate of h of a row's block, and what goes to h_{t-1} past the cell. With a projection the
// output's half of the state stage has been passed.
template <class T, template <class> class CellOf, class Operand>
inline auto Backward<T, CellOf, Operand>::output_gradient(int rank, int64_t t, int64_t i, int64_t block,
                                                          V& kept) const -> V {
  const int d = grid_.direction(rank);
  const int64_t b = batch_row(grid_.batch_group(rank), i), unit = block * W, at = (block * group_rows_ + i) * W;
  const Group& group = groups_[grid_.group(rank)];
  if (s_.P) return S::load(group.dm + at);
  const int lanes = units_.lanes(block);
  V dh = S::load(group.dh + at);
  if (p_.grad_y.data) {
    dh += load_as<T>(p_.grad_y.data, row_start(s_, p_.grad_y, t, b) + d * s_.H + unit, lanes, s_.dtype);
  }
  const TensorRows& keep = p_.masks.keep_h;
  if (keep.data) {
    const V k = load_as<T>(keep.data, row_start(s_, keep, t, b) + d * s_.H + unit, lanes, s_.dtype);
    Zoneout<VectorMath<T>>::backward(k, dh, kept);
  }
  return dh;
}

// State, cell and gates of this worker's units: dg, of a norm what reaches the normalised products with its sums, and
// what h_{t-1} and c_{t-1} get past the product.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::units_backward(int rank, const Chunk& chunk, int64_t s) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Direction& dir = directions_[d];
  const Worker& worker = workers_[rank];
  const Group& group = groups_[grid_.group(rank)];
  const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
  const Range blocks = own_blocks(units_, rank);
  T* const* vectors = stages_[d].vectors;
  const int64_t gate_stride = units_.blocks() * chunk_rows_ * W, width = (blocks.end - blocks.begin) * W;
  const bool wanted = has_vectors();
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row_b = batch_row(b, i);
    const Slot slot = slot_at(d, t, row_b);
    if (grid_.unit_group(rank) == 0) dir.slots[slot0 + i] = slot;
    const char* const row = saved_row(d, slot.row);
    const char* const next = i + 1 < n ? saved_row(d, s_.tensor_row(t, batch_row(b, i + 1))) : nullptr;
    RowMoments<T> of_x{}, of_h{}, of_c{};
    NormSums c_means{};
    if (on().norm) {
      worker.moments[i] = of_x = saved_moments(row, C::kSaved);
      worker.moments[group_rows_ + i] = of_h = saved_moments(row, C::kSaved + G);
      if constexpr (C::kHasCell) {
        of_c = worker.moments[2 * group_rows_ + i];
        c_means = means(group.c_sums, i, 1);
      }
    }
    V sums[4] = {};  // of x's e and e * normalised, of h's
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int lanes = units_.lanes(block);
      const int64_t at = (block * group_rows_ + i) * W, unit = block * W;
      V saved[C::kSaved], p[3] = {}, c{}, c_prev{}, h_prev{}, dh{}, dh_kept{}, dc{}, dc_kept{}, dpre[G], drec{},
                          dc_prev{}, dh_prev{};
      for (int k = 0; k < C::kSaved; ++k) saved[k] = saved_at(row, k, block, lanes);
      if (next) fetch_saved(next, block);
      if (on().peephole) {
        for (int k = 0; k < 3; ++k) p[k] = S::load(vectors[At::kPeephole + k] + unit);
      }
      if constexpr (C::kSplit) h_prev = load_as<T>(slot.h_prev, unit, lanes, s_.dtype);
      const bool apart = on().norm && C::kHasCell;  // emit_backward() has been here
      if (!apart) dh = output_gradient(rank, t, i, block, dh_kept);
      if constexpr (C::kHasCell) {
        c = candidate_at(d, slot, t, block);
        c_prev = S::load_n(slot.c_prev + unit, lanes);
        dc = S::load(group.dc + at);
        if (p_.grad_cells) {
          dc += S::load_n(static_cast<const T*>(p_.grad_cells) + (d * s_.rows() + slot.row) * s_.H + unit, lanes);
        }
        const TensorRows& keep = p_.masks.keep_c;
        if (keep.data) {
          const V k = load_as<T>(keep.data, row_start(s_, keep, t, row_b) + d * s_.H + unit, lanes, s_.dtype);
          Zoneout<VectorMath<T>>::backward(k, dc, dc_kept);
        }
        V d_seen;
        if (apart) {
          const int64_t own = ((block - blocks.begin) * group_rows_ + i) * W;
          const V normal = normalised(c, S::broadcast(of_c.mean), S::broadcast(of_c.scale));
          dpre[3] = S::load(worker.d_out_gate + own);
          d_seen = norm_backward(S::load(worker.d_seen + own), normal, S::broadcast(of_c.scale),
                                 S::broadcast(c_means.e), S::broadcast(c_means.product));
        } else {
          C::emit_backward(saved, c, dh, dpre, d_seen);
          if (s_.P && p_.need_weights) S::store(dir.m + (slot0 + i) * row_length() + unit, C::emit(saved, c));
        }
        dc += d_seen;
      }
      if constexpr (C::kSplit) {
        if (on().reset_before) {
          C::second_phase_backward(saved, h_prev, dh, dpre, drec, dh_prev);
          dpre[0] = V{};  // reset_backward() finds it
        } else {
          C::update_backward(on(), p, saved, c_prev, h_prev, dh, dc, dpre, drec, dc_prev, dh_prev);
        }
      } else {
        C::update_backward(on(), p, saved, c_prev, h_prev, dh, dc, dpre, drec, dc_prev, dh_prev);
      }
      T* const sum_at = worker.vector_sums + (block - blocks.begin) * W;
      if (on().peephole && wanted) {
        add_to(sum_at + At::kPeephole * width, dpre[0] * c_prev);
        if constexpr (C::kHasCell) {
          add_to(sum_at + (At::kPeephole + 1) * width, dpre[1] * c_prev);
          add_to(sum_at + (At::kPeephole + 2) * width, dpre[3] * c);
        }
      }
      T* out = dir.dg + (block * chunk_rows_ + slot0 + i) * W;
      if (on().norm) {
        for (int g = 0; g < G; ++g) {
          const V d_recurrent = C::kSplit && g == G - 1 ? drec : dpre[g];
          const V x = normalised(saved_at(row, C::kSaved + g, block, lanes), S::broadcast(of_x.mean),
                                 S::broadcast(of_x.scale));
          const V h = normalised(saved_at(row, C::kSaved + G + g, block, lanes), S::broadcast(of_h.mean),
                                 S::broadcast(of_h.scale));
          if (wanted) {
            add_to(sum_at + (At::kNormIh + g) * width, dpre[g] * x);
            add_to(sum_at + (At::kNormHh + g) * width, d_recurrent * h);
            add_to(sum_at + (kBias + g) * width, dpre[g]);
            if (C::kSplit && g == G - 1) add_to(sum_at + (kBias + G) * width, drec);
          }
          const V of_input = dpre[g] * S::load(vectors[At::kNormIh + g] + unit);
          const V of_state = d_recurrent * S::load(vectors[At::kNormHh + g] + unit);
          S::store(out + g * gate_stride, of_input);
          S::store(out + (G + g) * gate_stride, of_state);
          sums[0] += first_lanes<T>(of_input, lanes);
          sums[1] += first_lanes<T>(of_input * x, lanes);
          sums[2] += first_lanes<T>(of_state, lanes);
          sums[3] += first_lanes<T>(of_state * h, lanes);
        }
      } else {
        for (int g = 0; g < G; ++g) S::store(out + g * gate_stride, dpre[g]);
        if constexpr (C::kSplit) S::store(out + G * gate_stride, drec);
      }
      if constexpr (C::kHasCell) S::store(group.dc + at, slot.cut ? V{} : dc_prev + dc_kept);
      if (!s_.P && !apart) S::store(group.dh + at, dh_prev + dh_kept);
    }
    if (on().norm) {
      const int64_t to = grid_.unit_group(rank) * group_rows_ + i;
      group.x_sums[to] = {sum_lanes<T>(sums[0]), sum_lanes<T>(sums[1])};
      group.h_sums[to] = {sum_lanes<T>(sums[2]), sum_lanes<T>(sums[3])};
    }
  }
  if (stages_[d].h_rows && p_.need_weights && (on().recurrent_mask || on().reset_before)) keep_rows(rank, chunk, s);
}

// h as the products of this step saw it, for the gradients of their weights.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::keep_rows(int rank, const Chunk& chunk, int64_t s) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Stages& stages = stages_[d];
  const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
  const int64_t length = outputs_.blocks() * W;
  const Range blocks = own_blocks(outputs_, rank);
  for (int64_t i = 0; i < n; ++i) {
    const Slot slot = slot_at(d, t, batch_row(b, i));
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int lanes = outputs_.lanes(block);
      const int64_t to = (slot0 + i) * length + block * W;
      const V h = load_as<T>(slot.h_prev, block * W, lanes, s_.dtype) *
                  recurrent_mask(d, s_.row_of(batch_row(b, i)), block * W, lanes);
      S::store(stages.h_rows + to, h);
      if (on().reset_before) S::store(stages.reset_rows + to, saved_at(saved_row(d, slot.row), 0, block, lanes) * h);
    }
  }
}

// put(row, height, tile) of the product of gates [g0, g1) of dg and the recurrent weights' panel, a pass of gates at
// a time: tiles of several passes are to be added.
template <class T, template <class> class CellOf, class Operand>
template <class F>
inline void Backward<T, CellOf, Operand>::multiply_gates(int rank, int64_t p, int g0, int g1, int64_t slot0,
                                                         int64_t n, F&& put) {
  const int d = grid_.direction(rank), vectors = outputs_.blocks_of(p);
  const Direction& dir = directions_[d];
  const Heads<T> heads(s_);
  const Range units = heads.heads == 1 ? Range{0, s_.H} : heads.range(outputs_, p, s_.H);
  const int64_t length = units.end - units.begin;
  const Panel panel =
      heads.heads == 1
          ? panel_of(outputs_, p, dir.w_hh, p_.weights[d].w_hh, G * s_.H)
          : Panel{stages_[d].w_hh + outputs_.first_block(p) * W * G * heads.depth(outputs_, s_.H), vectors * W};
  const int pass = gates_a_pass(vectors);
  for (int first = g0; first < g1; first += pass) {
    for_tiles(Operand::tile_rows(vectors), 0, n, [&](int64_t row, int height) {
      alignas(64) T tile[Operand::kTileSize * W];
      const auto add_gates = [&](bool apart) {
        for (int j = 0; j < height * vectors; ++j) S::store(tile + j * W, V{});
        for (int g = first; g < min_of(g1, first + pass); ++g) {
          const int64_t blocks = recurrent_column(g) * units_.blocks() + units.begin / W;
          const T* dg = dir.dg + (blocks * chunk_rows_ + slot0 + row) * W;
          const T* weights = panel.data + g * length * panel.ld;
          if (apart) {
            heads.multiply_apart(height, vectors, 1, tile, dg, chunk_rows_ * W, weights, units,
                                 outputs_.first_block(p));
          } else {
            multiply<T>(height, vectors, tile, dg, chunk_rows_ * W, weights, panel.ld, length);
          }
        }
      };
      add_gates(false);
      if (heads.mixed(units) && !all_finite(tile, height * vectors)) add_gates(true);
      put(row, height, tile);
    });
  }
}

// The second phase's product of a reset before it: d(r * h) = dn W_hn, of which r and h get their parts.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::reset_backward(int rank, const Chunk& chunk, int64_t s) {
  if constexpr (C::kSplit) {
    const int d = grid_.direction(rank), b = grid_.batch_group(rank);
    const Group& group = groups_[grid_.group(rank)];
    const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
    const Range panels = own_panels(outputs_, rank), blocks = own_blocks(units_, rank);
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      multiply_gates(rank, p, G - 1, G, slot0, n, [&](int64_t row, int height, const T* tile) {
        store_blocked(tile, height, outputs_.blocks_of(p),
                      group.d_reset_h + (outputs_.first_block(p) * group_rows_ + row) * W);
      });
    }
    for (int64_t i = 0; i < n; ++i) {
      const Slot slot = slot_at(d, t, batch_row(b, i));
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int lanes = units_.lanes(block);
        const int64_t at = (block * group_rows_ + i) * W;
        const V mask = recurrent_mask(d, s_.row_of(batch_row(b, i)), block * W, lanes);
        const V h = load_as<T>(slot.h_prev, block * W, lanes, s_.dtype) * mask;
        const V saved[C::kSaved] = {saved_at(saved_row(d, slot.row), 0, block, lanes)};
        V dpre[G], dh;
        C::first_phase_backward(saved, h, S::load(group.d_reset_h + at), dpre, dh);
        S::store(directions_[d].dg + (block * chunk_rows_ + slot0 + i) * W, dpre[0]);
        S::store(group.dh + at, S::load(group.dh + at) + dh * mask);
      }
    }
  }
}

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::propagate_stages(int rank, const Chunk& chunk, int64_t s) {
  if (s == 0 && !p_.grad_h0) return;
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
  const Range own = own_panels(outputs_, rank);
  for (int64_t p = own.begin; p < own.end; ++p) {
    const int vectors = outputs_.blocks_of(p);
    const int64_t first = outputs_.first_block(p);
    multiply_gates(rank, p, 0, on().reset_before ? G - 1 : G, slot0, n, [&](int64_t row, int height, const T* tile) {
      for (int m = 0; m < height; ++m) {
        for (int v = 0; v < vectors; ++v) {
          T* dh = groups_[grid_.group(rank)].dh + ((first + v) * group_rows_ + row + m) * W;
          const V mask =
              recurrent_mask(d, s_.row_of(batch_row(b, row + m)), (first + v) * W, outputs_.lanes(first + v));
          S::store(dh, S::load(dh) + mask * S::load(tile + (m * vectors + v) * W));
        }
      }
    });
  }
  if (s_.resets) stop_at_resets(rank, slot0, n);
}

}  // namespace
}  // namespace fastrnn
