// The stages of a variant's forward step (cells/policies/stages.h), in the order in which advance() calls them; see
// forward.inl.
#pragma once
#include "cpu/rnn/forward_step.inl"

namespace fastrnn {
namespace {

// ---- memory and weights -----------------------------------------------------------------------------

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::lay_out_stages(int direction) {
  Stages& stages = stages_[direction];
  const int64_t width = units_.blocks() * W, depth = Heads<T>(s_).depth(units_, s_.out_size());
  const int first = on().reset_before ? G - 1 : G;
  stages.first = arena_.take<E>(width * first * depth);
  stages.second = arena_.take<E>(width * (G - first) * depth);
  for (T*& vector : stages.vectors) vector = arena_.take<T>(on().peephole || on().norm ? width : 0);
}

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::lay_out_stages(Group& group) {
  const int64_t rows = on().norm ? grid_.unit_groups : 0;
  group.reset_h = arena_.take<E>(on().reset_before ? outputs_.blocks() * group_rows_ * W : 0);
  group.x_parts = arena_.take<RowPart<T>>(rows * chunk_rows_);
  group.h_parts = arena_.take<RowPart<T>>(rows * group_rows_);
  group.c_parts = arena_.take<RowPart<T>>(C::kHasCell ? rows * group_rows_ : 0);
}

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::lay_out_stages(Worker& worker, int64_t blocks) {
  const int64_t size = blocks * group_rows_ * W;
  worker.held = arena_.take<T>(on().norm || on().reset_before ? G * size : 0);
  worker.moments = arena_.take<RowMoments<T>>(on().norm ? 2 * group_rows_ : 0);
  worker.candidate = arena_.take<T>(on().norm && C::kHasCell ? size : 0);
  worker.out_gate = arena_.take<T>(on().norm && C::kHasCell ? size : 0);
}

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::pack_stages(int rank) {
  const int d = grid_.direction(rank);
  const Turns turns = packed_by(units_, rank);
  const Stages& stages = stages_[d];
  const Heads<T> heads(s_);
  const int64_t K = s_.out_size(), depth = heads.depth(units_, K);
  const int first = on().reset_before ? G - 1 : G;
  for (int64_t panel = turns.begin; panel < turns.end; panel += turns.step) {
    const int64_t at = units_.first_block(panel) * W * depth;
    const auto pack = [&](int g0, int gates, E* to) {
      if (!gates) return;
      if (heads.heads > 1) return heads.pack_gates(p_.weights[d].w_hh, s_.dtype, g0, gates, units_, panel, to);
      const char* rows = static_cast<const char*>(p_.weights[d].w_hh);
      Operand::pack(rows + g0 * s_.H * K * static_cast<int64_t>(size_of(s_.dtype)), K, s_.dtype, gates, units_, panel,
                    K, to);
    };
    pack(0, first, stages.first + at * first);
    pack(first, G - first, stages.second + at * (G - first));
  }
  load_stage_vectors<T, G>(p_.weights[d], s_, units_, share_of(rank, units_.blocks()), stages.vectors);
}

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::mask_first_state(int direction, int64_t row, const Group& group, int64_t i) {
  for (int64_t block = 0; block < outputs_.blocks(); ++block) {
    for (E* buffer : group.h) {
      E* h = buffer + (block * group_rows_ + i) * W;
      Operand::store(h, Operand::load(h) * recurrent_mask(direction, row, block * W, outputs_.lanes(block)));
    }
  }
}

// ---- the step ---------------------------------------------------------------------------------------

template <class T, template <class> class CellOf, class Operand>
template <class Workers>
__attribute__((noinline)) void Forward<T, CellOf, Operand>::advance_stages(Workers& crew, int64_t s,
                                                                           int64_t s_in_chunk) {
  crew.each([&](int r) { first_product(r, s, s_in_chunk); });
  if (on().norm || on().reset_before) {
    crew.meet_group();  // the sums of rows, or r * h, are whole
    crew.each([&](int r) { on().norm ? normalise(r, s, s_in_chunk) : second_product(r, s, s_in_chunk); });
  }
  if constexpr (C::kHasCell) {
    if (on().norm) {
      crew.meet_group();  // the sums of the candidates of c are whole
      crew.each([&](int r) { emit(r, s); });
    }
  }
}

// ---- sums of rows -----------------------------------------------------------------------------------

// This worker's part of each row of the chunk's gx.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::sum_input_rows(int rank, int64_t rows) {
  const Group& group = groups_[grid_.group(rank)];
  const Range own = own_blocks(units_, rank);
  for (int64_t row = 0; row < rows; ++row) {
    group.x_parts[grid_.unit_group(rank) * chunk_rows_ + row] = part_of<G>(units_, own, [&](int64_t block, int g) {
      const int64_t panel = block / Weights::kUnits, units = units_.blocks_of(panel);
      return S::load(workers_[rank].gx + gx_offset(rank, panel) +
                     ((row * units + block - units_.first_block(panel)) * G + g) * W);
    });
  }
}

template <class T, template <class> class CellOf, class Operand>
inline RowMoments<T> Forward<T, CellOf, Operand>::moments(int rank, const RowPart<T>* parts, int64_t rows,
                                                          int64_t row, int per_unit) const {
  RowSum sum{};
  const int first = rank - grid_.unit_group(rank);
  for (int q = 0; q < grid_.unit_groups; ++q) {
    sum.add(parts[q * rows + row], static_cast<double>(units_in(units_, own_blocks(units_, first + q)) * per_unit));
  }
  return sum.template moments<T>(on().eps);
}

// ---- product ----------------------------------------------------------------------------------------

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::first_product(int rank, int64_t s, int64_t s_in_chunk) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const int64_t n = rows_at(b, time_of(d, s)), slot0 = workers_[rank].slots[s_in_chunk];
  const Worker& worker = workers_[rank];
  const Group& group = groups_[grid_.group(rank)];
  const Heads<T> heads(s_);
  const int64_t K = s_.out_size(), depth = heads.depth(units_, K);
  const int gates = on().reset_before ? G - 1 : G;
  const Range own = own_panels(units_, rank);
  const bool back = s & 1;  // as in step()
  for (int64_t i = own.begin; i < own.end; ++i) {
    const int64_t panel = back ? own.begin + own.end - 1 - i : i, first = units_.first_block(panel);
    const int units = units_.blocks_of(panel), vectors = units * gates;
    const Range k = heads.range(units_, panel, K);
    const E* weights = stages_[d].first + first * W * depth * gates;
    PanelPrefetch ahead;
    if (heads.heads == 1 && gates == G)
      ahead = next_panel(stages_[d].first, panel, back ? own.begin : own.end - 1, K);
    for_tiles(Operand::tile_rows(vectors), 0, n, [&](int64_t row, int height) {
      const T* gx = worker.gx + gx_offset(rank, panel) + (slot0 + row) * units * G * W;
      alignas(64) T tile[Operand::kTileSize * W];
      const auto multiply = [&](bool apart) {
        for (int j = 0; j < height * units; ++j) {
          for (int g = 0; g < gates; ++g) {
            const bool split = C::kSplit && g == G - 1;
            S::store(tile + (j * gates + g) * W, on().norm ? V{}
                                                 : split ? S::load(directions_[d].bias_rec + (first + j % units) * W)
                                                         : S::load(gx + (j * G + g) * W));
          }
        }
        const E* h = group.h[s & 1] + (k.begin / W * group_rows_ + row) * W;
        if (apart) return heads.multiply_apart(height, vectors, gates, tile, h, group_rows_ * W, weights, k, first);
        Operand::multiply(height, vectors, tile, h, group_rows_ * W, weights, k.end - k.begin,
                          ahead.slice(k.end - k.begin));
      };
      multiply(false);
      if (heads.mixed(k) && !all_finite(tile, height * vectors)) multiply(true);
      if (on().norm) {
        copy_vectors(tile,
                     worker.held + ((first - own_blocks(units_, rank).begin) * group_rows_ + row * units) * G * W,
                     height * vectors);
      } else if (on().reset_before) {
        hold_reset(tile, rank, s, first, row, height);
      } else {
        finish_units(tile, gx, rank, s, panel, units, row, height);
      }
    });
  }
  if (!on().norm) {
    if (!on().reset_before) hand_over(rank, s, time_of(d, s), n);
    return;
  }
  for (int64_t row = 0; row < n; ++row) {
    const Range blocks = own_blocks(units_, rank);
    group.h_parts[grid_.unit_group(rank) * group_rows_ + row] = part_of<G>(units_, blocks, [&](int64_t block, int g) {
      const int64_t panel = block / Weights::kUnits, first = units_.first_block(panel);
      return S::load(
          worker.held +
          ((first - blocks.begin) * group_rows_ * G + (row * units_.blocks_of(panel) + block - first) * G + g) * W);
    });
  }
}

// The first phase of a reset before the product: r and z wait, r * h is the second phase's operand.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::hold_reset(const T* tile, int rank, int64_t s, int64_t block, int64_t row,
                                                    int height) {
  if constexpr (C::kSplit) {
    const Group& group = groups_[grid_.group(rank)];
    const int64_t own = block - own_blocks(units_, rank).begin;
    for (int m = 0; m < height; ++m) {
      const int64_t at = (block * group_rows_ + row + m) * W;
      V pre[G], saved[C::kSaved];
      for (int g = 0; g < G - 1; ++g) pre[g] = S::load(tile + (m * (G - 1) + g) * W);
      C::first_phase(pre, saved);
      Operand::store(group.reset_h + at, saved[0] * Operand::load(group.h[s & 1] + at));
      T* held = workers_[rank].held + (own * group_rows_ + row + m) * 2 * W;
      S::store(held, saved[0]);
      S::store(held + W, saved[1]);
    }
  }
}

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::second_product(int rank, int64_t s, int64_t s_in_chunk) {
  if constexpr (C::kSplit) {
    const int d = grid_.direction(rank), b = grid_.batch_group(rank);
    const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = workers_[rank].slots[s_in_chunk];
    const Group& group = groups_[grid_.group(rank)];
    const Heads<T> heads(s_);
    const int64_t K = s_.out_size(), depth = heads.depth(units_, K);
    static_assert(Weights::kUnits == 1);
    const Range own = own_panels(units_, rank);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const Range k = heads.range(units_, block, K);
      const V bias = S::load(directions_[d].bias_rec + block * W);
      for_tiles(Operand::tile_rows(1), 0, n, [&](int64_t row, int height) {
        const T* gx = workers_[rank].gx + gx_offset(rank, block) + (slot0 + row) * G * W;
        alignas(64) T tile[Operand::kTileSize * W];
        const auto multiply = [&](bool apart) {
          for (int m = 0; m < height; ++m) S::store(tile + m * W, S::load(gx + (m * G + G - 1) * W) + bias);
          const E* reset_h = group.reset_h + (k.begin / W * group_rows_ + row) * W;
          const E* weights = stages_[d].second + block * W * depth;
          if (apart) return heads.multiply_apart(height, 1, 1, tile, reset_h, group_rows_ * W, weights, k, block);
          Operand::multiply(height, 1, tile, reset_h, group_rows_ * W, weights, k.end - k.begin, nullptr);
        };
        multiply(false);
        if (heads.mixed(k) && !all_finite(tile, height)) multiply(true);
        for (int m = 0; m < height; ++m) {
          const T* held = workers_[rank].held + ((block - own.begin) * group_rows_ + row + m) * 2 * W;
          V saved[C::kSaved] = {S::load(held), S::load(held + W)}, h;
          const V h_prev = S::load(group.h_state + (block * group_rows_ + row + m) * W);
          C::second_phase(S::load(tile + m * W), h_prev, saved, h);
          save(d, s_.tensor_row(t, batch_row(b, row + m)), block, 0, saved, C::kSaved);
          put_candidate(rank, s, block, row + m, h);
        }
      });
    }
    hand_over(rank, s, t, n);
  }
}

// ---- gates, cell, state -----------------------------------------------------------------------------

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::normalise(int rank, int64_t s, int64_t s_in_chunk) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = workers_[rank].slots[s_in_chunk];
  const Worker& worker = workers_[rank];
  const Range own = own_panels(units_, rank), blocks = own_blocks(units_, rank);
  for (int64_t row = 0; row < n; ++row) {
    const Group& group = groups_[grid_.group(rank)];
    worker.moments[row] = moments(rank, group.x_parts, chunk_rows_, slot0 + row, G);
    worker.moments[group_rows_ + row] = moments(rank, group.h_parts, group_rows_, row, G);
  }
  for (int64_t panel = own.begin; panel < own.end; ++panel) {
    const int units = units_.blocks_of(panel);
    const int64_t held = (units_.first_block(panel) - blocks.begin) * group_rows_ * G * W;
    for (int64_t row = 0; row < n; ++row) {
      finish_units(worker.held + held + row * units * G * W,
                   worker.gx + gx_offset(rank, panel) + (slot0 + row) * units * G * W, rank, s, panel, units, row, 1);
    }
  }
  if constexpr (C::kHasCell) {
    for (int64_t row = 0; row < n; ++row) {
      groups_[grid_.group(rank)].c_parts[grid_.unit_group(rank) * group_rows_ + row] =
          part_of<1>(units_, blocks, [&](int64_t block, int) {
            return S::load(worker.candidate + ((block - blocks.begin) * group_rows_ + row) * W);
          });
    }
  } else {
    hand_over(rank, s, t, n);
  }
}

// What the product left in a tile becomes the candidate of h, and c; with a norm of an LSTM h waits for emit().
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::finish_units(const T* tile, const T* gx, int rank, int64_t s, int64_t panel,
                                                      int units, int64_t row, int height) {
  using At = StageVector<G>;
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const int64_t t = time_of(d, s);
  const Group& group = groups_[grid_.group(rank)];
  const Worker& worker = workers_[rank];
  T* const* vectors = stages_[d].vectors;
  for (int m = 0; m < height; ++m) {
    const int64_t batch_b = batch_row(b, row + m), y_row = s_.tensor_row(t, batch_b);
    RowMoments<T> of_x{}, of_h{};
    if (on().norm) {
      of_x = worker.moments[row + m];
      of_h = worker.moments[group_rows_ + row + m];
    }
    for (int u = 0; u < units; ++u) {
      const int64_t block = units_.first_block(panel) + u, unit = block * W, at = (block * group_rows_ + row + m) * W;
      const int lanes = units_.lanes(block);
      const int64_t from = (m * units + u) * G * W;
      V pre[G], p[3] = {}, saved[C::kSaved], rec{}, c_prev{}, c{}, h{};
      if (on().norm) {
        V raw[2 * G];
        for (int g = 0; g < G; ++g) {
          raw[g] = S::load(gx + from + g * W);
          raw[G + g] = S::load(tile + from + g * W);
          pre[g] = normalised(raw[g], S::broadcast(of_x.mean), S::broadcast(of_x.scale)) *
                       S::load(vectors[At::kNormIh + g] + unit) +
                   S::load(directions_[d].bias + (block * G + g) * W);
          const V recurrent = normalised(raw[G + g], S::broadcast(of_h.mean), S::broadcast(of_h.scale)) *
                              S::load(vectors[At::kNormHh + g] + unit);
          if (C::kSplit && g == G - 1) {
            rec = recurrent + S::load(directions_[d].bias_rec + unit);
          } else {
            pre[g] += recurrent;
          }
        }
        save(d, y_row, block, C::kSaved, raw, 2 * G);
      } else {
        for (int g = 0; g < G; ++g) pre[g] = S::load(tile + from + g * W);
        if constexpr (C::kSplit) {
          rec = pre[G - 1];
          pre[G - 1] = S::load(gx + from + (G - 1) * W);
        }
      }
      V h_prev{};
      if constexpr (C::kSplit) h_prev = S::load(group.h_state + at);
      if constexpr (C::kHasCell) c_prev = S::load(group.c + at);
      if (on().peephole) {
        for (int k = 0; k < 3; ++k) p[k] = S::load(vectors[At::kPeephole + k] + unit);
      }
      C::update(on(), p, pre, rec, h_prev, c_prev, saved, c, h);
      save(d, y_row, block, 0, saved, C::kSaved);
      if constexpr (C::kHasCell) {
        if (on().norm) {
          const int64_t own = ((block - own_blocks(units_, rank).begin) * group_rows_ + row + m) * W;
          S::store(worker.candidate + own, c);
          S::store(worker.out_gate + own, saved[3]);
        } else {
          h = C::emit(saved, c);
        }
        const TensorRows& keep = p_.masks.keep_c;
        if (keep.data) {
          const int64_t k = row_start(s_, keep, t, batch_b) + d * s_.H + unit;
          Zoneout<VectorMath<T>>::forward(load_as<T>(keep.data, k, lanes, s_.dtype), c_prev, c);
        }
        S::store(group.c + at, restarts(d, t, batch_b) ? V{} : c);
        if (p_.cells) S::store_n(static_cast<T*>(p_.cells) + (d * s_.rows() + y_row) * s_.H + unit, c, lanes);
      }
      if (!(on().norm && C::kHasCell)) put_candidate(rank, s, block, row + m, h);
    }
  }
}

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::save(int direction, int64_t row, int64_t block, int first, const V* values,
                                              int count) {
  if (!p_.gates) return;
  const int64_t all = C::kSaved + (on().norm ? 2 * G : 0);
  const int64_t base = ((direction * s_.rows() + row) * all + first) * s_.H + block * W;
  if (streams_) {
    for (int k = 0; k < count; ++k) stream_as<T>(p_.gates, base + k * s_.H, values[k], s_.dtype);
    return;
  }
  for (int k = 0; k < count; ++k) {
    store_as<T>(p_.gates, base + k * s_.H, values[k], units_.lanes(block), s_.dtype);
  }
}

// The candidate of h goes to the projection, or through the output's half of the state stage.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::put_candidate(int rank, int64_t s, int64_t block, int64_t i, V h) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank), lanes = units_.lanes(block);
  const Group& group = groups_[grid_.group(rank)];
  const int64_t at = (block * group_rows_ + i) * W, t = time_of(d, s), batch_b = batch_row(b, i);
  if (s_.P) {
    Operand::store(group.m + at, h);
    Operand::end_row(group.m + at, lanes);
    return;
  }
  const int64_t y_row = s_.tensor_row(t, batch_b);
  put_output({d, t, y_row, block * W, lanes}, batch_b, (y_row * s_.D + d) * s_.H + block * W, restarts(d, t, batch_b),
             group.h[s & 1] + at, group.h[(s + 1) & 1] + at, group.h_state + at, h);
}

// h of an LSTM whose c is normalised for it.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::emit(int rank, int64_t s) {
  if constexpr (C::kHasCell) {
    using At = StageVector<G>;
    const int d = grid_.direction(rank), b = grid_.batch_group(rank);
    const int64_t t = time_of(d, s), n = rows_at(b, t);
    const Worker& worker = workers_[rank];
    const Range blocks = own_blocks(units_, rank);
    for (int64_t i = 0; i < n; ++i) {
      const RowMoments<T> of_c = moments(rank, groups_[grid_.group(rank)].c_parts, group_rows_, i, 1);
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t own = ((block - blocks.begin) * group_rows_ + i) * W;
        const V seen =
            normalised(S::load(worker.candidate + own), S::broadcast(of_c.mean), S::broadcast(of_c.scale)) *
                S::load(stages_[d].vectors[At::kNormC] + block * W) +
            S::load(stages_[d].vectors[At::kNormCBias] + block * W);
        const V saved[4] = {V{}, V{}, V{}, S::load(worker.out_gate + own)};
        put_candidate(rank, s, block, i, C::emit(saved, seen));
      }
    }
    hand_over(rank, s, t, n);
  }
}

}  // namespace
}  // namespace fastrnn
