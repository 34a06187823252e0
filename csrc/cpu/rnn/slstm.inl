// What both passes of the sLSTM (cells/slstm.h) share. Rows never wait for each other, nor do heads, whose recurrent
// weights are blocks of their own: so a worker takes some rows and some heads, and walks a head through the whole
// sequence with its weights and states in the cache, without a meeting.
#pragma once
#include "cells/slstm.h"
#include "cpu/product/pack.inl"
#include "cpu/team.h"
#include "params/slstm.h"
#include "plan/scan.h"

namespace fastrnn {
namespace {

template <class T>
class Slstm {
 protected:
  using S = Simd<T>;
  using V = typename S::V;
  using Cell = SlstmCell<VectorMath<T>>;
  using State = typename Cell::State;
  static constexpr int W = S::W, G = Cell::kGates;

  Slstm(const SlstmInputs& in, const SlstmPlan& plan, char* workspace)
      : in_(in), s_(in.shape), plan_(plan), units_{s_.head_size(), 1} {
    arena_.base = workspace;
  }

  int batch_group(int rank) const { return rank % plan_.batch_groups; }
  int head_group(int rank) const { return rank / plan_.batch_groups; }
  int64_t first_row(int group) const { return s_.B * group / plan_.batch_groups; }
  int first_head(int group) const { return s_.heads * group / plan_.head_groups; }
  int64_t most_rows() const { return ceil_div(s_.B, plan_.batch_groups); }
  int64_t padded() const { return units_.blocks() * W; }

  int64_t step(int64_t s, bool descending) const { return descending ? s_.T - 1 - s : s; }
  uint8_t flags(int64_t t, int64_t b) const { return in_.flags ? in_.flags[t * s_.B + b] : 0; }

  // A (B,H) tensor of the layer's type, or zeros, of a head's units into rows of padded() elements, and back.
  void load_state(const void* from, int head, int64_t first_row, int64_t rows, T* to) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t block = 0; block < units_.blocks(); ++block) {
        const int64_t at = (first_row + r) * s_.H + head * units_.length + block * W;
        S::store(to + r * padded() + block * W, from ? load_as<T>(from, at, units_.lanes(block), s_.dtype) : V{});
      }
    }
  }
  void store_state(const T* from, int head, int64_t first_row, int64_t rows, void* to) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t block = 0; block < units_.blocks(); ++block) {
        const int64_t at = (first_row + r) * s_.H + head * units_.length + block * W;
        store_as<T>(to, at, S::load(from + r * padded() + block * W), units_.lanes(block), s_.dtype);
      }
    }
  }
  void clear(T* row) const {
    for (int64_t j = 0; j < padded(); j += W) S::store(row + j, V{});
  }

  const SlstmInputs& in_;
  const SlstmShape& s_;
  const SlstmPlan& plan_;
  const Panels<T> units_;  // of a head
  Arena arena_;
};

}  // namespace
}  // namespace fastrnn
