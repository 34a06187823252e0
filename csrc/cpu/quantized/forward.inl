// Forward pass of one layer with quantized weights over the whole sequence, for inference: nothing is saved.
//
// Layouts (R rows of the batch, in groups of 16 units):
//   h, two buffers     [R][ceil(Hout/16)*16]  h_t is written while h_{t-1} is read
//   c, m               [R][ceil(H/16)*16]     m: the output before a projection
//   gx a worker        [row of the chunk][own block][G][16], input projection of a chunk of steps
//   rows a worker      the left operand of a product, quantized: of a chunk's x, or of a step's h
// Units are split between workers, rows are not: each quantizes all rows of the left operand for itself, which is
// less than to wait for others to do it.
//
// Costs a step: B*G*H*Hout multiply-adds; reads the packed recurrent weights once for every kQuantizedRows rows.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/quantized/product.inl"
#include "cpu/quantized/rows.inl"
#include "cpu/rnn/schedule.inl"
#include "cpu/simd/math.h"

namespace fastrnn {
namespace {

template <Storage kStorage>
struct LeftElement {
  using type = float;
};
template <>
struct LeftElement<Storage::kInt8> {
  using type = int8_t;
};

template <Storage kStorage, template <class> class CellOf>
class QuantizedForward : private Schedule {
  using E = typename LeftElement<kStorage>::type;
  using S = Simd<float>;
  using V = S::V;
  using C = CellOf<VectorMath<float>>;
  static constexpr int W = S::W, G = C::kGates;
  static constexpr int64_t L = kQuantizedBlock, kBlocksAtOnce = 4;

 public:
  QuantizedForward(const QuantizedParams& params, const CpuPlan& plan, char* workspace)
      : Schedule(params.shape, plan),
        p_(params),
        blocks_(QuantizedWeights::blocks_of(s_.H)),
        out_blocks_(QuantizedWeights::blocks_of(s_.out_size())),
        products_(quantized_products_of<E, G>(p_.dot)),
        output_products_(quantized_products_of<E, 1>(p_.dot)) {
    arena_.base = workspace;
    const int64_t bytes = blocks_ * (block_bytes(s_.I) + block_bytes(s_.out_size())) / grid_.unit_groups;
    alternates_ = s_.T == 1 && bytes > plan_.near_bytes;
    lay_out();
  }

  size_t workspace_bytes() const { return arena_.used; }
  using Schedule::workers;

  static void body(int64_t begin, int64_t end, void* self) {
    static_cast<QuantizedForward*>(self)->run(static_cast<int>(begin), static_cast<int>(end));
  }

 private:
  struct State {
    float *h[2], *c, *m;
  };
  struct Worker {
    float* gx;
    E* rows;
    float* scales;
    // Of only_step(), which has input and state at hand together.
    E* state_rows;
    float* state_scales;
    int64_t* slots;  // first chunk row of each step of the chunk
  };

  int64_t padded(int64_t K) const {
    const int64_t columns = quantized_columns(kStorage);
    return (K + columns - 1) / columns * columns;
  }
  int64_t block_bytes(int64_t K) const { return QuantizedWeights::block_bytes(K, G, kStorage); }
  Range own_of(int64_t blocks, int rank) const {
    const int64_t q = grid_.unit_group(rank);
    return {blocks * q / grid_.unit_groups, blocks * (q + 1) / grid_.unit_groups};
  }
  // Rows that run at a time: a batch has one group of them.
  int64_t rows_of(int64_t t) const { return s_.active(t); }

  // ---- memory ---------------------------------------------------------------------------------

  void lay_out() {
    const int64_t chunk_rows = max_of<int64_t>(1, plan_.forward_chunk * s_.B);
    const int64_t columns = max_of(max_of(padded(s_.I), padded(s_.out_size())), padded(s_.H));
    take_barriers(arena_);
    states_ = arena_.take<State>(s_.D);
    workers_ = arena_.take<Worker>(grid_.workers());
    for (int d = 0; d < s_.D; ++d) {
      weights_[d].read(p_.packed[d], s_, kStorage, G, C::kSplit);
      State state;
      state.h[0] = arena_.take<float>(out_blocks_ * L * s_.B);
      state.h[1] = arena_.take<float>(out_blocks_ * L * s_.B);
      state.c = arena_.take<float>(C::kHasCell ? blocks_ * L * s_.B : 0);
      state.m = arena_.take<float>(s_.P ? blocks_ * L * s_.B : 0);
      if (arena_.base) states_[d] = state;
    }
    for (int r = 0; r < grid_.workers(); ++r) {
      const Range own = own_of(blocks_, r);
      Worker worker;
      worker.gx = arena_.take<float>((own.end - own.begin) * G * L * chunk_rows);
      worker.rows = arena_.take<E>(columns * chunk_rows);
      worker.scales = arena_.take<float>(chunk_rows);
      worker.state_rows = arena_.take<E>(alternates_ ? columns * chunk_rows : 0);
      worker.state_scales = arena_.take<float>(alternates_ ? chunk_rows : 0);
      worker.slots = arena_.take<int64_t>(plan_.forward_chunk);
      if (arena_.base) workers_[r] = worker;
    }
    if (arena_.base) reset_barriers();
  }

  // ---- the pass -------------------------------------------------------------------------------

  void run(int begin, int end) {
    Crew crew(*this, begin, end);
    crew.each([&](int r) { prepare(r); });
    crew.meet_direction();
    crew.apart([&](auto&& own) {
      for (int64_t s0 = 0; s0 < s_.T; s0 += plan_.forward_chunk) {
        const int64_t s1 = min_of(s_.T, s0 + plan_.forward_chunk);
        if (!alternates_) own.each([&](int r) { project_input(r, s0, s1); });
        for (int64_t s = s0; s < s1; ++s) {
          own.each([&](int r) { alternates_ ? only_step(r) : step(r, s, s - s0); });
          if (s_.P) {
            own.meet_group();  // every unit of m is written before any product reads it
            own.each([&](int r) { project_output(r, s); });
          }
          own.meet_group();  // h_t is whole before step t+1 reads it, and h_{t-1} is free to be overwritten
        }
      }
    });
  }

  // The state of all rows, by one worker of a direction.
  void prepare(int rank) {
    if (grid_.unit_group(rank)) return;
    const int d = grid_.direction(rank);
    const State& state = states_[d];
    const auto fill = [&](const void* from, int64_t size, int64_t blocks, float* to) {
      for (int64_t row = 0; row < s_.B; ++row, to += blocks * L) {
        const float* own = from ? static_cast<const float*>(from) + (d * s_.B + s_.state_row(row)) * size : nullptr;
        for (int64_t k = 0; k < blocks * L; k += W) {
          const int lanes = static_cast<int>(min_of<int64_t>(W, max_of<int64_t>(0, size - k)));
          S::store(to + k, own ? S::load_n(own + k, lanes) : V{});
        }
      }
    };
    fill(p_.h0, s_.out_size(), out_blocks_, state.h[0]);
    fill(p_.h0, s_.out_size(), out_blocks_, state.h[1]);
    if constexpr (C::kHasCell) fill(p_.c0, s_.H, blocks_, state.c);
  }

  // Rows of K numbers, `stride` apart, as left operand from row `at` of the worker's on.
  void quantize(const Worker& worker, int64_t at, const float* from, int64_t stride, int64_t count, int64_t K) const {
    for (int64_t i = 0; i < count; ++i) {
      worker.scales[at + i] = quantize_row(from + i * stride, K, worker.rows + (at + i) * padded(K));
    }
  }

  // f(first row, tile, LeftRows, height) for tiles of `rows` rows of the worker's left operand of K columns.
  template <class F>
  FASTRNN_INLINE void for_row_tiles(const Worker& worker, int64_t rows, int64_t K, F&& f) const {
    const int64_t stride = padded(K);
    for (int64_t row = 0; row < rows; row += kQuantizedRows) {
      const int height = static_cast<int>(min_of<int64_t>(kQuantizedRows, rows - row));
      f(row, LeftRows<E>{worker.rows + row * stride, stride, worker.scales + row}, height);
    }
  }

  void project_input(int rank, int64_t s0, int64_t s1) {
    project_blocks(rank, quantize_input(rank, s0, s1), own_of(blocks_, rank));
  }

  // The rows of a chunk's input as left operand, and how many they are.
  int64_t quantize_input(int rank, int64_t s0, int64_t s1) {
    const Worker& worker = workers_[rank];
    const int d = grid_.direction(rank);
    int64_t rows = 0;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = time_of(d, s), n = rows_of(t);
      worker.slots[s - s0] = rows;
      for (int64_t i = 0; i < n; ++i, ++rows) {
        quantize(worker, rows, static_cast<const float*>(p_.x.data) + row_start(s_, p_.x, t, i), 0, 1, s_.I);
      }
    }
    return rows;
  }

  void project_blocks(int rank, int64_t rows, Range blocks) {
    const Worker& worker = workers_[rank];
    const int d = grid_.direction(rank);
    const Range own = own_of(blocks_, rank);
    const int64_t groups = QuantizedWeights::groups_of(s_.I, kStorage), row_size = (own.end - own.begin) * G * L;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const float* bias = weights_[d].bias + block * G * L;
      const QuantizedBlock weight = QuantizedBlock::of(weights_[d].w_ih, block, G, block_bytes(s_.I));
      for_row_tiles(worker, rows, s_.I, [&](int64_t row, const LeftRows<E>& left, int height) {
        alignas(64) float tile[kQuantizedRows * G * L];
        for (int m = 0; m < height; ++m) copy(bias, tile + m * G * L, G);
        products_.of_rows[height - 1](weight, left, groups, tile);
        for (int m = 0; m < height; ++m) {
          copy(tile + m * G * L, worker.gx + (row + m) * row_size + (block - own.begin) * G * L, G);
        }
      });
    }
  }

  static FASTRNN_INLINE void copy(const float* from, float* to, int blocks) {
    for (int k = 0; k < blocks * L; k += W) S::store(to + k, S::load(from + k));
  }

  void step(int rank, int64_t s, int64_t s_in_chunk) {
    quantize_state(rank, s, workers_[rank]);
    // Every other step runs backwards: it begins with the weights that the step before left in the cache.
    step_blocks(rank, s, s_in_chunk, workers_[rank], own_of(blocks_, rank), s & 1);
  }

  // A sequence of one step, a few blocks of units at a time, both products of each: so what the cache holds of the
  // last call's weights is whole blocks, with which the next call begins if it runs the other way.
  void only_step(int rank) {
    Worker of_state = workers_[rank];
    of_state.rows = of_state.state_rows;
    of_state.scales = of_state.state_scales;
    const int64_t rows = quantize_input(rank, 0, 1);
    quantize_state(rank, 0, of_state);
    const Range own = own_of(blocks_, rank);
    for (int64_t done = 0; done < own.end - own.begin; done += kBlocksAtOnce) {
      const int64_t n = min_of(kBlocksAtOnce, own.end - own.begin - done);
      const int64_t first = p_.back ? own.end - done - n : own.begin + done;
      project_blocks(rank, rows, {first, first + n});
      step_blocks(rank, 0, 0, of_state, {first, first + n}, false);
    }
  }

  void quantize_state(int rank, int64_t s, const Worker& worker) {
    const int d = grid_.direction(rank);
    quantize(worker, 0, states_[d].h[s & 1], out_blocks_ * L, rows_of(time_of(d, s)), s_.out_size());
  }

  // The units of some blocks at step s, from the rows of h that `worker` has as left operand.
  void step_blocks(int rank, int64_t s, int64_t s_in_chunk, const Worker& worker, Range blocks, bool back) {
    const int d = grid_.direction(rank);
    const State& state = states_[d];
    const int64_t t = time_of(d, s), n = rows_of(t), out = s_.out_size();
    const Range own = own_of(blocks_, rank);
    const int64_t groups = QuantizedWeights::groups_of(out, kStorage), row_size = (own.end - own.begin) * G * L;
    const float* gx = worker.gx + worker.slots[s_in_chunk] * row_size;
    for (int64_t i = blocks.begin; i < blocks.end; ++i) {
      const int64_t block = back ? blocks.begin + blocks.end - 1 - i : i;
      const QuantizedBlock weight = QuantizedBlock::of(weights_[d].w_hh, block, G, block_bytes(out));
      for_row_tiles(worker, n, out, [&](int64_t row, const LeftRows<E>& left, int height) {
        const float* input = gx + row * row_size + (block - own.begin) * G * L;
        alignas(64) float tile[kQuantizedRows * G * L];
        for (int m = 0; m < height; ++m) {
          copy(input + m * row_size, tile + m * G * L, G - C::kSplit);
          if constexpr (C::kSplit) copy(weights_[d].bias_rec + block * L, tile + (m * G + G - 1) * L, 1);
        }
        products_.of_rows[height - 1](weight, left, groups, tile);
        for (int m = 0; m < height; ++m) {
          finish(state, d, s, t, row + m, n, block, tile + m * G * L, input + m * row_size);
        }
      });
    }
  }

  // The cell of a block of units of a row: what the product left becomes the new state.
  FASTRNN_INLINE void finish(const State& state, int d, int64_t s, int64_t t, int64_t row, int64_t n, int64_t block,
                             const float* tile, const float* input) {
    const int64_t y_row = s_.tensor_row(t, row), at = (row * blocks_ + block) * L;
    const bool ends = row >= first_ending(d, t, n);
#pragma GCC unroll 4
    for (int v = 0; v < kBlockRegisters; ++v) {
      const int64_t unit = block * L + v * W;
      const int lanes = static_cast<int>(min_of<int64_t>(W, max_of<int64_t>(0, s_.H - unit)));
      V pre[G], saved[C::kSaved ? C::kSaved : 1], rec{}, h_prev{}, c_prev{}, c, h;
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) pre[g] = S::load(tile + g * L + v * W);
      if constexpr (C::kSplit) {
        rec = pre[G - 1];
        pre[G - 1] = S::load(input + (G - 1) * L + v * W);
        h_prev = S::load(state.h[s & 1] + at + v * W);
      }
      if constexpr (C::kHasCell) c_prev = S::load(state.c + at + v * W);
      forward_unit<C>(UnitAt{d, t, y_row, unit, lanes}, pre, rec, h_prev, c_prev, saved, c, h);
      if constexpr (C::kHasCell) {
        S::store(state.c + at + v * W, c);
        if (ends && lanes)
          S::store_n(static_cast<float*>(p_.cn) + (d * s_.B + s_.state_row(row)) * s_.H + unit, c, lanes);
      }
      if (s_.P) {
        S::store(state.m + at + v * W, h);
      } else {
        S::store(state.h[(s + 1) & 1] + at + v * W, h);
        if (lanes) put(d, y_row, row, unit, lanes, ends, h);
      }
    }
  }

  FASTRNN_INLINE void put(int d, int64_t y_row, int64_t row, int64_t unit, int lanes, bool ends, V h) {
    const int64_t out = s_.out_size();
    S::store_n(static_cast<float*>(p_.y) + (y_row * s_.D + d) * out + unit, h, lanes);
    if (ends) S::store_n(static_cast<float*>(p_.hn) + (d * s_.B + s_.state_row(row)) * out + unit, h, lanes);
  }

  // Of the n rows that run at time t, the first that ends there.
  int64_t first_ending(int d, int64_t t, int64_t n) const { return d ? (t > 0 ? n : 0) : rows_of(t + 1); }

  void project_output(int rank, int64_t s) {
    const Worker& worker = workers_[rank];
    const int d = grid_.direction(rank);
    const State& state = states_[d];
    const int64_t t = time_of(d, s), n = rows_of(t), bytes = QuantizedWeights::block_bytes(s_.H, 1, kStorage);
    quantize(worker, 0, state.m, blocks_ * L, n, s_.H);
    const Range own = own_of(out_blocks_, rank);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const QuantizedBlock weight = QuantizedBlock::of(weights_[d].w_hr, block, 1, bytes);
      for_row_tiles(worker, n, s_.H, [&](int64_t row, const LeftRows<E>& left, int height) {
        alignas(64) float tile[kQuantizedRows * L] = {};
        output_products_.of_rows[height - 1](weight, left, QuantizedWeights::groups_of(s_.H, kStorage), tile);
        for (int m = 0; m < height; ++m) {
          const bool ends = row + m >= first_ending(d, t, n);
          for (int v = 0; v < kBlockRegisters; ++v) {
            const int64_t unit = block * L + v * W;
            const int lanes = static_cast<int>(min_of<int64_t>(W, s_.P - unit));
            const V h = S::load(tile + m * L + v * W);
            S::store(state.h[(s + 1) & 1] + (row + m) * out_blocks_ * L + unit, h);
            if (lanes > 0) put(d, s_.tensor_row(t, row + m), row + m, unit, lanes, ends, h);
          }
        }
      });
    }
  }

  const QuantizedParams& p_;
  const int64_t blocks_, out_blocks_;
  const QuantizedProducts<E, G>& products_;
  const QuantizedProducts<E, 1>& output_products_;
  Arena arena_;
  bool alternates_ = false;  // see only_step()
  QuantizedWeights weights_[kMaxDirections];
  State* states_ = nullptr;
  Worker* workers_ = nullptr;
};

}  // namespace
}  // namespace fastrnn
