// What a variant's step back leaves to a chunk's end: the gradients of its weights and vectors; see backward.inl.
#pragma once
#include "cpu/rnn/backward.inl"

namespace fastrnn {
namespace {

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
  WeightGradient<T> gradient{chunk.rows, chunk_rows_, chunk.first, s_.dtype, workers_[rank].panel, plan_.near_bytes};
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
