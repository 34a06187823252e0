// The stages of a variant's step back (cells/policies/stages.h), in the order in which retreat() calls them, and what
// they leave to a chunk's end; see backward.inl.
#pragma once
#include "cpu/rnn/backward_step.inl"

namespace fastrnn {
namespace {

// ---- memory and weights -----------------------------------------------------------------------------

template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::lay_out_stages(int direction) {
  Stages& stages = stages_[direction];
  const int64_t width = units_.blocks() * W, rows = chunk_rows_ * outputs_.blocks() * W;
  stages.w_hh = arena_.take<T>(on().heads > 1 ? G * width * Heads<T>(s_).depth(outputs_, s_.H) : 0);
  for (T*& vector : stages.vectors) vector = arena_.take<T>(on().peephole || on().norm ? width : 0);
  const bool wanted = p_.need_weights && (on().recurrent_mask || on().reset_before);
  stages.h_rows = arena_.take<T>(wanted ? rows : 0);
  stages.reset_rows = arena_.take<T>(wanted && on().reset_before ? rows : 0);
}

template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::lay_out_stages(Group& group) {
  group.d_reset_h = arena_.take<T>(on().reset_before ? outputs_.blocks() * group_rows_ * W : 0);
  const int64_t sums = on().norm ? grid_.unit_groups * group_rows_ : 0;
  group.x_sums = arena_.take<NormSums>(sums);
  group.h_sums = arena_.take<NormSums>(sums);
  group.c_sums = arena_.take<NormSums>(sums);
}

template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::lay_out_stages(Worker& worker, Range own) {
  const int64_t width = (own.end - own.begin) * W;
  worker.vector_sums = arena_.take<T>(has_vectors() ? kVectorSums * width : 0);
  worker.vector_totals = arena_.take<double>(has_vectors() ? kVectorSums * width : 0);
  worker.moments = arena_.take<RowMoments<T>>(on().norm ? 3 * group_rows_ : 0);
  worker.d_out_gate = arena_.take<T>(on().norm && C::kHasCell ? width * group_rows_ : 0);
  worker.d_seen = arena_.take<T>(on().norm && C::kHasCell ? width * group_rows_ : 0);
}

template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::pack_stages(int rank) {
  const int d = grid_.direction(rank), shares = grid_.workers_a_direction();
  if (on().heads > 1) {
    const Heads<T> heads(s_);
    const int64_t depth = heads.depth(outputs_, s_.H);
    for (int64_t panel = share(rank); panel < outputs_.count(); panel += shares) {
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

template <class T, template <class> class CellOf>
template <class Workers, class ChunkOf>
__attribute__((noinline)) void Backward<T, CellOf>::retreat_stages(Workers& crew, ChunkOf&& chunk_of, int64_t s) {
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

template <class T, template <class> class CellOf>
inline auto Backward<T, CellOf>::recurrent_mask(int direction, int64_t row, int64_t unit, int lanes) const -> V {
  if (!p_.masks.recurrent) return S::set(1);
  return load_as<T>(p_.masks.recurrent, (direction * s_.B + row) * s_.out_size() + unit, lanes, s_.dtype);
}

// What forward saved of a row.
template <class T, template <class> class CellOf>
inline const char* Backward<T, CellOf>::saved_row(int direction, int64_t row) const {
  const int64_t all = C::kSaved + (on().norm ? 2 * G : 0);
  return static_cast<const char*>(p_.gates) +
         (direction * s_.rows() + row) * all * s_.H * static_cast<int64_t>(size_of(s_.dtype));
}
// Value k of a block of it.
template <class T, template <class> class CellOf>
FASTRNN_INLINE auto Backward<T, CellOf>::saved_at(const char* row, int k, int64_t block, int lanes) const -> V {
  return load_as<T>(row, k * s_.H + block * W, lanes, s_.dtype);
}

// Moments of G values a unit that forward saved of a row, from value `first` on. In one pass (Welford 1962), whose
// chains are as many as the gates'.
template <class T, template <class> class CellOf>
inline RowMoments<T> Backward<T, CellOf>::saved_moments(const char* row, int first) const {
  V mean[G] = {}, squares[G] = {};
  RowSum sum;
  const int64_t whole = s_.H / W;
  for (int64_t block = 0; block < whole; ++block) {
    const V weight = S::broadcast(T(1) / static_cast<T>(block + 1));
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const V v = saved_at(row, first + g, block, W), away = v - mean[g];
      mean[g] += away * weight;
      squares[g] += away * (v - mean[g]);
    }
  }
  if (whole) {
    V all{}, away{};
    for (int g = 0; g < G; ++g) all += mean[g];
    const T middle = sum_lanes<T>(all) / (G * W);
    for (int g = 0; g < G; ++g) {
      const V d = mean[g] - S::broadcast(middle);
      away += squares[g] + S::broadcast(static_cast<T>(whole)) * d * d;
    }
    sum.add(RowPart<T>{middle, sum_lanes<T>(away)}, static_cast<double>(whole * W * G));
  }
  const Range rest = {whole, units_.blocks()};
  sum.add(part_of(units_, rest, G,
                  [&](int64_t block, int g) { return saved_at(row, first + g, block, units_.lanes(block)); }),
          static_cast<double>(units_in(units_, rest) * G));
  return sum.template moments<T>(on().eps);
}

// The candidate of c: c itself where nothing of the old one stays.
template <class T, template <class> class CellOf>
inline auto Backward<T, CellOf>::candidate_at(int direction, const Slot& slot, int64_t, int64_t block) const -> V {
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
template <class T, template <class> class CellOf>
inline auto Backward<T, CellOf>::output_gradient(int rank, int64_t t, int64_t i, int64_t block, V& kept) const -> V {
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

template <class T, template <class> class CellOf>
inline RowMoments<T> Backward<T, CellOf>::moments_of(const RowPart<T>& part, int per_unit) const {
  RowSum sum;
  sum.add(part, static_cast<double>(s_.H * per_unit));
  return sum.template moments<T>(on().eps);
}

template <class T, template <class> class CellOf>
inline auto Backward<T, CellOf>::means(const NormSums* sums, int64_t row, int per_unit) const -> NormSums {
  T e = 0, product = 0;
  for (int q = 0; q < grid_.unit_groups; ++q) {
    e += sums[q * group_rows_ + row].e;
    product += sums[q * group_rows_ + row].product;
  }
  const T count = static_cast<T>(s_.H * per_unit);
  return {e / count, product / count};
}

// An LSTM whose h sees a normalised c: o's gradient, and that of the normalised c with its sums.
template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::emit_backward(int rank, const Chunk& chunk, int64_t s) {
  if constexpr (C::kHasCell) {
    const int d = grid_.direction(rank), b = grid_.batch_group(rank);
    const Worker& worker = workers_[rank];
    const Group& group = groups_[grid_.group(rank)];
    const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
    const Range blocks = own_blocks(units_, rank);
    T* const* vectors = stages_[d].vectors;
    const bool wanted = has_vectors();
    const int64_t width = (blocks.end - blocks.begin) * W;
    for (int64_t i = 0; i < n; ++i) {
      const Slot slot = slot_at(d, t, batch_row(b, i));
      const char* const row = saved_row(d, slot.row);
      const RowMoments<T> of_c =
          moments_of(part_of(units_, {0, units_.blocks()}, 1,
                             [&](int64_t block, int) { return candidate_at(d, slot, t, block); }),
                     1);
      worker.moments[2 * group_rows_ + i] = of_c;
      V sum{}, product{};
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t at = (block * group_rows_ + i) * W, own = ((block - blocks.begin) * group_rows_ + i) * W;
        const V gain = S::load(vectors[At::kNormC] + block * W);
        const V normal =
            normalised(candidate_at(d, slot, t, block), S::broadcast(of_c.mean), S::broadcast(of_c.scale));
        const V seen = normal * gain + S::load(vectors[At::kNormCBias] + block * W);
        const V saved[4] = {V{}, V{}, V{}, saved_at(row, 3, block, units_.lanes(block))};
        V kept{}, dpre[4], d_seen;
        const V dh = output_gradient(rank, t, i, block, kept);
        C::emit_backward(saved, seen, dh, dpre, d_seen);
        if (!s_.P) S::store(group.dh + at, kept);
        if (s_.P && p_.need_weights) {
          S::store(directions_[d].m + (slot0 + i) * row_length() + block * W, C::emit(saved, seen));
        }
        if (wanted) {
          T* const sum_at = worker.vector_sums + (block - blocks.begin) * W;
          add_to(sum_at + At::kNormC * width, d_seen * normal);
          add_to(sum_at + At::kNormCBias * width, d_seen);
        }
        const V e = d_seen * gain;
        sum += first_lanes<T>(e, units_.lanes(block));
        product += first_lanes<T>(e * normal, units_.lanes(block));
        S::store(worker.d_out_gate + own, dpre[3]);
        S::store(worker.d_seen + own, e);
      }
      group.c_sums[grid_.unit_group(rank) * group_rows_ + i] = {sum_lanes<T>(sum), sum_lanes<T>(product)};
    }
  }
}

// State, cell and gates of this worker's units: dg, of a norm what reaches the normalised products with its sums, and
// what h_{t-1} and c_{t-1} get past the product.
template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::units_backward(int rank, const Chunk& chunk, int64_t s) {
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
template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::keep_rows(int rank, const Chunk& chunk, int64_t s) {
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

// Through the norms of both products, whose sums are whole.
template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::norm_product(int rank, const Chunk& chunk, int64_t s) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Worker& worker = workers_[rank];
  const Group& group = groups_[grid_.group(rank)];
  const int64_t t = time_of(d, s), n = rows_at(b, t), slot0 = first_slot(chunk, t, b);
  const Range blocks = own_blocks(units_, rank);
  const int64_t gate_stride = units_.blocks() * chunk_rows_ * W;
  for (int64_t i = 0; i < n; ++i) {
    const char* const row = saved_row(d, s_.tensor_row(t, batch_row(b, i)));
    for (int part = 0; part < 2; ++part) {
      const RowMoments<T> of = worker.moments[part * group_rows_ + i];
      const NormSums mean = means(part ? group.h_sums : group.x_sums, i, G);
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        for (int g = 0; g < G; ++g) {
          T* dg = directions_[d].dg + (block * chunk_rows_ + slot0 + i) * W + (part * G + g) * gate_stride;
          const V normal = normalised(saved_at(row, C::kSaved + part * G + g, block, units_.lanes(block)),
                                      S::broadcast(of.mean), S::broadcast(of.scale));
          const V out = norm_backward(S::load(dg), normal, S::broadcast(of.scale), S::broadcast(mean.e),
                                      S::broadcast(mean.product));
          S::store(dg, first_lanes<T>(out, units_.lanes(block)));
        }
      }
    }
  }
}

// put(row, height, tile) of the product of gates [g0, g1) of dg and the recurrent weights' panel, a pass of gates at
// a time: tiles of several passes are to be added.
template <class T, template <class> class CellOf>
template <class F>
inline void Backward<T, CellOf>::multiply_gates(int rank, int64_t p, int g0, int g1, int64_t slot0, int64_t n,
                                                F&& put) {
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
    for_tiles(tile_rows(vectors), 0, n, [&](int64_t row, int height) {
      alignas(64) T tile[kTileSize * W];
      for (int j = 0; j < height * vectors; ++j) S::store(tile + j * W, V{});
      for (int g = first; g < min_of(g1, first + pass); ++g) {
        const int64_t blocks = recurrent_column(g) * units_.blocks() + units.begin / W;
        multiply<T>(height, vectors, tile, dir.dg + (blocks * chunk_rows_ + slot0 + row) * W, chunk_rows_ * W,
                    panel.data + g * length * panel.ld, panel.ld, length);
      }
      put(row, height, tile);
    });
  }
}

// The second phase's product of a reset before it: d(r * h) = dn W_hn, of which r and h get their parts.
template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::reset_backward(int rank, const Chunk& chunk, int64_t s) {
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

template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::propagate_stages(int rank, const Chunk& chunk, int64_t s) {
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

// ---- a chunk's end ----------------------------------------------------------------------------------

template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::finish_stages(int rank, const Chunk& chunk) {
  const int d = grid_.direction(rank);
  const Direction& dir = directions_[d];
  const WeightGradients& grads = p_.grad_weights[d];
  const int64_t blocks = units_.blocks(), length = outputs_.blocks() * W;
  const Range mine = share_of(rank, G * blocks);
  // One type for every gradient's left and right side: a variant's are not worth an instance of the loops each.
  struct Left {
    const Backward* layer;  // null: block i itself, else where recurrent block i lies
    int64_t blocks;
    int64_t operator()(int64_t i) const {
      return layer ? layer->recurrent_column(static_cast<int>(i / blocks)) * blocks + i % blocks : i;
    }
  };
  struct Right {
    const Slot* slots;  // null: natural rows of `length` bytes
    const char* Slot::* row;
    const char* rows;
    int64_t length, offset;
    const char* operator()(int64_t slot) const { return (slots ? slots[slot].*row : rows + slot * length) + offset; }
  };
  const Left same{nullptr, blocks}, recurrent{this, blocks};
  WeightGradient<T> gradient{chunk.rows, chunk_rows_, chunk.first, s_.dtype, workers_[rank].panel};
  const auto add_product = [&](const T* left, const Panels<T>& units, Range own, const Left& source,
                               const Panels<T>& columns, const Right& right, void* to) __attribute__((noinline)) {
    gradient.add(left, units, own.begin, own.end, source, columns.length, right, static_cast<T*>(to));
  };
  add_product(dir.dg, units_, mine, same, inputs_, {dir.slots, &Slot::x, nullptr, 0, 0}, grads.w_ih);
  if (s_.bias && !on().norm) {
    gradient.add_bias(dir.dg, units_, mine.begin, mine.end, same, static_cast<T*>(grads.b_ih));
    gradient.add_bias(dir.dg, units_, mine.begin, mine.end, recurrent, static_cast<T*>(grads.b_hh));
  }
  constexpr Dtype kCompute = sizeof(T) == 8 ? Dtype::kDouble : Dtype::kFloat;
  const bool kept = on().recurrent_mask || on().reset_before;
  const Heads<T> heads(s_);
  gradient.right_dtype = kept ? kCompute : s_.dtype;
  const int64_t element = static_cast<int64_t>(size_of(gradient.right_dtype));
  // The gradient of w_hh's rows of blocks [begin, end), all of gate g, from columns `first` on of what it multiplied.
  const auto add = [&](int g, int64_t begin, int64_t end, int64_t first, const Panels<T>& columns) {
    const T* rows = on().reset_before && g == G - 1 ? stages_[d].reset_rows : stages_[d].h_rows;
    add_product(dir.dg, units_, {begin, end}, recurrent, columns,
                {kept ? nullptr : dir.slots, &Slot::h_prev, reinterpret_cast<const char*>(rows), length * element,
                 first * element},
                static_cast<T*>(grads.w_hh));
  };
  for (int g = 0; g < G; ++g) {
    const Range own = {max_of(mine.begin, g * blocks), min_of(mine.end, (g + 1) * blocks)};
    if (own.begin >= own.end) continue;
    if (heads.heads == 1) {
      add(g, own.begin, own.end, 0, outputs_);
      continue;
    }
    for (int head = 0; head < heads.heads; ++head) {
      const int64_t begin = head * heads.size, end = begin + heads.size;  // its units
      const Panels<T> columns{heads.size, kPanelVectors};
      for (int64_t block = max_of(own.begin - g * blocks, begin / W); block < own.end - g * blocks;) {
        if (block * W >= end) break;
        gradient.first_lane = static_cast<int>(max_of<int64_t>(0, begin - block * W));
        gradient.last_lane = static_cast<int>(min_of<int64_t>(W, end - block * W));
        int64_t next = block + 1;  // whole blocks go together
        if (gradient.first_lane == 0 && gradient.last_lane == W) {
          next = max_of(next, min_of(own.end - g * blocks, end / W));
        }
        add(g, g * blocks + block, g * blocks + next, begin, columns);
        block = next;
      }
    }
    gradient.first_lane = 0, gradient.last_lane = W;
  }
  if (s_.P) {
    const Range own = share_of(rank, outputs_.blocks());
    gradient.right_dtype = kCompute;
    add_product(
        dir.dh_out, outputs_, own, same, units_,
        {nullptr, nullptr, reinterpret_cast<const char*>(dir.m), row_length() * static_cast<int64_t>(sizeof(T)), 0},
        grads.w_hr);
  }
  if (!has_vectors()) return;
  const Range own = own_blocks(units_, rank);
  const Worker& worker = workers_[rank];
  for (int64_t i = 0; i < kVectorSums * (own.end - own.begin) * W; ++i) {
    worker.vector_totals[i] += static_cast<double>(worker.vector_sums[i]);
    worker.vector_sums[i] = 0;
  }
}

// The gradients of a variant's vectors: the batch groups' totals, in a fixed order.
template <class T, template <class> class CellOf>
inline void Backward<T, CellOf>::store_vector_gradients(int rank) {
  if (!has_vectors() || grid_.batch_group(rank) != 0) return;
  const WeightGradients& grads = p_.grad_weights[grid_.direction(rank)];
  const Range own = own_blocks(units_, rank);
  const int64_t width = (own.end - own.begin) * W;
  const auto put = [&](void* to, int part, int vector) {
    for (int64_t i = 0; to && i < units_in(units_, own); ++i) {
      double sum = 0;
      for (int b = 0; b < grid_.batch_groups; ++b) {
        sum += workers_[rank + b * grid_.unit_groups].vector_totals[vector * width + i];
      }
      static_cast<T*>(to)[part * s_.H + own.begin * W + i] = static_cast<T>(sum);
    }
  };
  if (on().peephole) {
    for (int k = 0; k < 3; ++k) put(grads.peephole, k, At::kPeephole + k);
  }
  if (!on().norm) return;
  for (int g = 0; g < G; ++g) {
    put(grads.norm_ih, g, At::kNormIh + g);
    put(grads.norm_hh, g, At::kNormHh + g);
    put(grads.b_ih, g, kBias + g);
    put(grads.b_hh, g, kBias + (C::kSplit && g == G - 1 ? G : g));
  }
  put(grads.norm_c, 0, At::kNormC);
  put(grads.norm_c_bias, 0, At::kNormCBias);
}

}  // namespace
}  // namespace fastrnn
