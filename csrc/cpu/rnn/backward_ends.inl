// The two ends of the backward pass: weights and the gradients of the last states come in, those of the first states
// go out; see backward.inl.
#pragma once
#include "cpu/rnn/backward.inl"

namespace fastrnn {
namespace {

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::prepare(int rank) {
  const int d = grid_.direction(rank);
  const DirectionWeights& weights = p_.weights[d];
  const Direction& dir = directions_[d];
  const auto pack = [&](const Panels<T>& columns, const void* weight, int gates, int64_t K, E* out) {
    const Turns turns = packed_by(columns, rank);
    for (int64_t panel = turns.begin; panel < turns.end; panel += turns.step) {
      if (natural(columns, panel)) continue;
      Operand::pack_rows(weight, columns.length, s_.dtype, columns, panel, gates, K,
                         out + columns.first_block(panel) * W * gates * Operand::depth(K));
    }
  };
  if (!C::kVariant || s_.variant.heads == 1) pack(outputs_, weights.w_hh, G, s_.H, dir.w_hh);
  if constexpr (C::kVariant) pack_stages(rank);
  if (s_.P) pack(units_, weights.w_hr, 1, s_.P, dir.w_hr);
  if constexpr (!C::kVariant) {
    if (recompute_) pack_gates(rank);
  }
  if constexpr (C::kHasCell) {
    const Range rows = share_of(rank, s_.B);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      for (int64_t block = 0; block < units_.blocks(); ++block) {
        const int lanes = units_.lanes(block);
        S::store_n(dir.c0 + row * s_.H + block * W,
                   load_as<T>(p_.c0, (d * s_.B + row) * s_.H + block * W, lanes, s_.dtype), lanes);
      }
    }
  }
  const Group& group = groups_[grid_.group(rank)];
  load_state_gradient(rank, outputs_, p_.grad_hn, group.dh);
  if constexpr (C::kHasCell) load_state_gradient(rank, units_, p_.grad_cn, group.dc);
}

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::load_state_gradient(int rank, const Panels<T>& columns,
                                                              const void* gradient, T* out) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Range blocks = own_blocks(columns, rank);
  const int64_t rows = grid_.rows(s_.B, b);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (d * s_.B + s_.row_of(batch_row(b, i))) * columns.length + block * W;
      S::store(out + (block * group_rows_ + i) * W,
               gradient ? load_as<T>(gradient, at, columns.lanes(block), s_.dtype) : V{});
    }
  }
}

template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::store_state_gradients(int rank) {
  const int d = grid_.direction(rank), b = grid_.batch_group(rank);
  const Group& group = groups_[grid_.group(rank)];
  const int64_t rows = grid_.rows(s_.B, b);
  const auto store = [&](const Panels<T>& columns, const T* from, void* out) {
    if (!out) return;
    const Range blocks = own_blocks(columns, rank);
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = (d * s_.B + s_.row_of(batch_row(b, i))) * columns.length + block * W;
        store_as<T>(out, at, S::load(from + (block * group_rows_ + i) * W), columns.lanes(block), s_.dtype);
      }
    }
  };
  store(outputs_, group.dh, p_.grad_h0);
  if constexpr (C::kHasCell) store(units_, group.dc, p_.grad_c0);
}

}  // namespace
}  // namespace fastrnn
