// The input's products of the forward pass, a chunk of steps at a time, and products with weights where they lie; see
// forward.inl.
#pragma once
#include "cpu/rnn/forward.inl"

namespace fastrnn {
namespace {

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::project_input(int rank, int64_t s0, int64_t s1) {
  const int64_t rows = take_rows(rank, s0, s1);
  const Range own = own_panels(units_, rank);
  project_panels(rank, rows, own);
  if constexpr (C::kVariant) {
    if (on().norm) sum_input_rows(rank, rows);
  }
}

// The rows of x that a worker multiplies, blocked; how many. Where they are the lanes, they and the state as such.
template <class T, template <class> class CellOf, class Operand>
inline int64_t Forward<T, CellOf, Operand>::take_rows(int rank, int64_t s0, int64_t s1) {
  const Worker& worker = workers_[rank];
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  int64_t rows = 0;
  for (int64_t s = s0; s < s1; ++s) {
    const int64_t t = time_of(d, s), n = rows_at(b, t);
    worker.slots[s - s0] = rows;
    for (int64_t i = 0; i < n; ++i, ++rows) {
      const int64_t at = row_start(s_, p_.x, t, batch_row(b, i));
      block_row<T, Operand>(static_cast<const char*>(p_.x.data) + at * static_cast<int64_t>(size_of(s_.dtype)), s_.I,
                            s_.dtype, worker.x, chunk_rows_, rows);
    }
  }
  if constexpr (kHasLanes) {
    if (in_lanes_) {
      rows_into_lanes<T>(worker.x, chunk_rows_ * W, rows, s_.I, worker.x_lanes);
      rows_into_lanes<T>(groups_[grid_.group(rank)].h[0], group_rows_ * W, rows, s_.out_size(), worker.h_lanes);
    }
  }
  return rows;
}

// Their product with these panels of W_ih. By panels, those of W_hh come next.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::project_panels(int rank, int64_t rows, Range panels) {
  if (in_lanes_ || input_dots_) return input_in_place(rank, rows, panels);
  const int d = grid_.direction(rank);
  const Direction& dir = directions_[d];
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const Lie lie = Weights::lie_of(units_, panel);
    const E* weights = dir.w_ih + units_.first_block(panel) * panel_size(s_.I);
    PanelPrefetch ahead;
    if (input_just_in_time_) {
      Weights::pack_panel(p_.weights[d].w_ih, s_, s_.I, panel, workers_[rank].panel);
      weights = workers_[rank].panel;
    } else if (!by_panels_) {
      ahead = next_panel(dir.w_ih, panel, panels.end - 1, s_.I);
    } else if (dir.w_hh) {
      ahead = far_panel(dir.w_hh, panel, s_.out_size());
    }
    for_tiles(Operand::tile_rows(lie.vectors), 0, rows,
              [&](int64_t row, int height) { input_tile(rank, weights, panel, lie, row, height, ahead); });
  }
}

// The one step of a call, panel by panel of both matrices.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::only_step(int rank) {
  const int d = grid_.direction(rank);
  const Range own = own_panels(units_, rank);
  const int64_t rows = take_rows(rank, 0, 1);
  const int64_t together = max_of(kRowTiles, 1);
  for (int64_t i = own.begin; i < own.end; i += together) {
    const int64_t end = min_of(own.end, i + together);
    const Range panels = p_.back ? Range{own.begin + own.end - end, own.begin + own.end - i} : Range{i, end};
    const int64_t next = end == own.end ? -1 : p_.back ? panels.begin - 1 : panels.end;
    project_panels(rank, rows, panels);
    step_panels(rank, 0, 0, panels, false, next);
  }
  hand_over(rank, 0, time_of(d, 0), rows);
}

template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::input_tile(int rank, const E* weights, int64_t panel, const Lie& lie,
                                                    int64_t row, int height, PanelPrefetch& ahead) {
  const Worker& worker = workers_[rank];
  const Direction& dir = directions_[grid_.direction(rank)];
  const int64_t first = units_.first_block(panel);
  const int of_part = lie.vectors;
  const bool from_zero = C::kVariant && s_.variant.norm;  // the bias comes behind the norm
  for (int part = 0; part < kParts; ++part) {
    T* out = worker.gx + gx_offset(rank, panel) + (part * chunk_rows_ + row) * of_part * W;
    const T* from = from_zero ? kZeros : dir.bias + (first * G + part * of_part) * W;
    multiply_from(height, of_part, out, from, 0, worker.x + row * W, chunk_rows_ * W,
                  weights + part * of_part * W * Operand::depth(s_.I), s_.I, ahead.slice(s_.I));
  }
}

// ---- weights where they lie: too few rows to repay packing, or one step of many ---------------

// The rows of the chunk times W_ih where it lies, into gx.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::input_in_place(int rank, int64_t rows, Range panels) {
  const int d = grid_.direction(rank);
  const Worker& worker = workers_[rank];
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const void* const after = panel + 1 < panels.end ? first_row(p_.weights[d].w_ih, s_.I, panel + 1)
                              : by_panels_           ? first_row(p_.weights[d].w_hh, s_.out_size(), panels.begin)
                                                     : nullptr;
    const int of_part = Weights::lie_of(units_, panel).vectors;
    T* gx = worker.gx + gx_offset(rank, panel);
    const T* bias = directions_[d].bias + units_.first_block(panel) * G * W;
    for (int part = 0; part < kParts; ++part) {
      for (int64_t r = 0; r < rows; ++r) {
        copy_vectors(bias + part * of_part * W, gx + (part * chunk_rows_ + r) * of_part * W, of_part);
      }
    }
    if (in_lanes_) {
      add_lanes(p_.weights[d].w_ih, s_.I, panel, worker.x_lanes, rows, gx, chunk_rows_);
      continue;
    }
    for_tiles(kDotRows, 0, rows, [&](int64_t row, int height) {
      add_dots(p_.weights[d].w_ih, s_.I, panel, after, height, worker.x + row * W, chunk_rows_ * W,
               gx + row * of_part * W, chunk_rows_);
    });
  }
}

// Where a panel of `weight` begins where it lies.
template <class T, template <class> class CellOf, class Operand>
inline const void* Forward<T, CellOf, Operand>::first_row(const void* weight, int64_t K, int64_t panel) const {
  return static_cast<const char*>(weight) +
         units_.first_block(panel) * W * K * static_cast<int64_t>(size_of(s_.dtype));
}

// f(sums, rows, block, gate) of every block of units and gate of a panel: where its sums begin, with part_rows rows a
// part, and its rows of `weight`, which has K columns.
template <class T, template <class> class CellOf, class Operand>
template <class F>
FASTRNN_INLINE void Forward<T, CellOf, Operand>::each_gate(const void* weight, int64_t K, int64_t panel,
                                                           int64_t part_rows, F&& f) const {
  const Lie lie = Weights::lie_of(units_, panel);
  const int64_t row_bytes = K * static_cast<int64_t>(size_of(s_.dtype));
  for (int u = 0; u < lie.units; ++u) {
    const int64_t block = units_.first_block(panel) + u;
    for (int g = 0; g < G; ++g) {
      f(lie.at(0, part_rows, u, g), static_cast<const char*>(weight) + (g * s_.H + block * W) * row_bytes, block, g);
    }
  }
}

// out += the gates of a panel of `weight` where it lies, K columns, for `height` rows of the blocked a. A part of out
// has part_rows rows. `after` (or null) comes next, as many rows as a block has or fewer.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::add_dots(const void* weight, int64_t K, int64_t panel, const void* after,
                                                  int height, const E* a, int64_t block_stride, T* out,
                                                  int64_t part_rows) {
  if constexpr (sizeof(E) == sizeof(T)) {  // rounded operands have rows enough
    const DotRows<T> dot = dot_rows_of<T>(s_.dtype, height);
    const Lie lie = Weights::lie_of(units_, panel);
    const int64_t row_bytes = K * static_cast<int64_t>(size_of(s_.dtype));
    const bool far = G * s_.H * row_bytes / grid_.unit_groups > plan_.near_bytes;
    const int64_t last = units_.first_block(panel) + lie.units - 1;
    each_gate(weight, K, panel, part_rows, [&](int64_t sums, const char* rows, int64_t block, int g) {
      // The block that comes next, in the order of the step: of the next gate, or the next units' first.
      const int64_t ahead = g + 1 < G ? s_.H : W - g * s_.H;
      const void* next = g + 1 < G || block < last ? rows + ahead * row_bytes : after;
      dot(out + sums, lie.vectors * W, rows, units_.lanes(block), K, a, block_stride, far ? next : nullptr);
    });
  }
}

// The same for rows that are lanes, all at once.
template <class T, template <class> class CellOf, class Operand>
inline void Forward<T, CellOf, Operand>::add_lanes(const void* weight, int64_t K, int64_t panel, const T* lanes,
                                                   int64_t rows, T* out, int64_t part_rows) {
  if constexpr (kHasLanes) {
    const int vectors = Weights::lie_of(units_, panel).vectors;
    each_gate(weight, K, panel, part_rows, [&](int64_t sums, const char* of_gate, int64_t block, int) {
      add_rows_in_lanes<T>(out + sums, vectors * W, reinterpret_cast<const T*>(of_gate), units_.lanes(block), K,
                           lanes, rows);
    });
  }
}

}  // namespace
}  // namespace fastrnn
