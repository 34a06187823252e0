// Forward pass of one layer over the whole sequence.
//
// Layouts (T = compute type, W lanes a register, R rows of a batch group; h, m, x and the packed
// weights are operands of products and hold E of operand.inl, T itself but for the bfloat16 dot):
//   h, two buffers a group   blocked [ceil(Hout/W)][R][W]   h_t is written while h_{t-1} is read
//   c, m a group             blocked [ceil(H/W)][R][W]      m: the output before a projection
//   gx a worker              [panel][part][chunk rows][units*G/parts*W] input projection of a chunk of
//                            steps, small enough to stay in the L2 cache until its steps consume it
// Saved tensors and outputs are natural rows (see params/rnn.h) and are written once, never read.
//
// Costs a step: 2*B*G*H*Hout flops; reads the packed recurrent weights once a row tile.
#pragma once
#include "cpu/product/few_rows.inl"
#include "cpu/product/panels.inl"
#include "cpu/product/rows_in_lanes.inl"
#include "cpu/rnn/heads.inl"
#include "cpu/rnn/one_row.inl"
#include "cpu/rnn/row_sums.inl"
#include "cpu/rnn/schedule.inl"

namespace fastrnn {
namespace {

template <class T, template <class> class CellOf, class Operand>
class Forward : private Schedule {
  using E = typename Operand::E;
  using S = Simd<T>;
  using V = typename S::V;
  using C = CellOf<VectorMath<T>>;
  static constexpr int W = S::W;
  static constexpr int G = C::kGates;
  static constexpr bool kKeepsState = C::kVariant || (Operand::kRounds && kReadsH<C>);
  static constexpr bool kHasOneRow = sizeof(T) == 4 && !C::kVariant && !Operand::kRounds;
  // Rows whose product with W_ih is made by dots where weights are read where they lie: more repay the packing of
  // each panel just before its use.
  static constexpr int64_t kDotInputRows = 8;
  // Rows of a call of one step that fill the lanes well enough are the lanes (rows_in_lanes.inl).
  static constexpr int64_t kLeastInLanes = 16, kMostInLanes = 96;
  static constexpr bool kHasLanes = kLaneUnits > 0 && sizeof(T) == 4 && std::is_same_v<Operand, NaturalOperand<T>> &&
                                    !C::kVariant;
  // Saved values of a variant from so many bytes on are written past the caches, in which they would not be when the
  // backward pass comes: a norm has three times the plain cell's.
  static constexpr int64_t kStreamedBytes = 16 << 20, kLine = 64;
  // A call of a single step reads every weight once. Of weights that are somewhat larger than the second-level cache
  // it finds there what the call before has read last, if it begins where that one left off (ForwardParams::back) and
  // takes the panels of both matrices by turns. Beyond so many times what stays in the cache, two streams by turns
  // cost more than what is found.
  static constexpr int64_t kPanelsOfCaches = 5;

 public:
  using Weights = PackedWeights<T, CellOf, Operand>;
  using Lie = typename Weights::Lie;
  static constexpr int kParts = Weights::kParts, kPartGates = Weights::kPartGates;

  Forward(const ForwardParams& params, const CpuPlan& plan, char* workspace)
      : Schedule(params.shape, plan), p_(params), units_(Weights::units_of(s_)), outputs_(Weights::outputs_of(s_)) {
    arena_.base = workspace;
    // A panel that is used once is packed into a small buffer right before, so that the packed weights
    // never travel through memory; with several batch groups each would repeat the packing.
    const bool alone = !p_.packed && plan_.batch_groups == 1;
    if constexpr (C::kVariant) {
      // What is written past the caches has to be whole lines, each at once.
      const int64_t line = Simd<T>::W * static_cast<int64_t>(size_of(s_.dtype));
      const int64_t bytes = s_.D * s_.rows() * saved_of(s_) * s_.H * static_cast<int64_t>(size_of(s_.dtype));
      streams_ = p_.gates && line == kLine && bytes >= kStreamedBytes && s_.H % W == 0 &&
                 reinterpret_cast<uintptr_t>(p_.gates) % kLine == 0;
    }
    input_dots_ = plan_.direct && plan_.forward_chunk * most_group_rows() <= kDotInputRows;
    in_lanes_ = fits_lanes();
    input_just_in_time_ = alone && !in_lanes_ && !input_dots_ && plan_.forward_chunk >= s_.T;
    state_just_in_time_ = alone && !in_lanes_ && !plan_.direct && s_.T == 1 && !C::kVariant;
    const int64_t weights = G * s_.H * (s_.I + s_.out_size()) * static_cast<int64_t>(sizeof(E)) / grid_.unit_groups;
    by_panels_ =
        s_.T == 1 && !C::kVariant && weights > plan_.near_bytes && weights <= kPanelsOfCaches * plan_.near_bytes;
    lay_out();
  }

  size_t workspace_bytes() const { return arena_.used; }

  static void body(int64_t begin, int64_t end, void* self) {
    static_cast<Forward*>(self)->run(static_cast<int>(begin), static_cast<int>(end));
  }

  // Whatever the plan, a stream of few units is one worker's: all of a step is one chain.
  int workers() const { return is_one_row() ? 1 : Schedule::workers(); }

 private:
  using Direction = Weights;
  struct Group {
    E* h[2];
    T* h_state;  // for a cell that adds to h_{t-1}, where h itself is rounded
    T* c;
    E* m;
    // Of a variant: r * h, and the parts of rows that the group's workers have, [unit group][row].
    E* reset_h;
    RowPart<T>*x_parts, *h_parts, *c_parts;
  };
  // Of a variant and direction: recurrent panels, of a second phase too, and vectors of the padded units.
  struct Stages {
    E *first, *second;
    T* vectors[kStageVectors<G>];
  };
  struct Worker {
    T* gx;
    E* x;
    int64_t* slots;               // first chunk row of each step of the chunk
    E* panel;                     // a panel that is packed just before its only use
    T *x_lanes, *h_lanes, *sums;  // where rows are lanes: those of the only step, and the sums of a panel
    // Of a variant, what waits for a meeting: the recurrent part of the gates or r and z, like gx of one step; an
    // LSTM's candidate of c and its o, [own blocks][R][W].
    T *held, *candidate, *out_gate;
    RowMoments<T>* moments;  // of a step's rows: [x, h][row]
  };

  static int64_t panel_size(int64_t K) { return Weights::panel_size(K); }

  // ---- memory ---------------------------------------------------------------------------------

  void lay_out() {
    const int64_t blocks = units_.blocks(), group_rows = spread_rows(most_group_rows());
    const int64_t out_blocks = outputs_.blocks();
    chunk_rows_ = spread_rows(plan_.forward_chunk * most_group_rows());
    group_rows_ = group_rows;
    take_barriers(arena_);
    for (int d = 0; d < s_.D; ++d) {
      Direction& dir = directions_[d];
      if (p_.packed) {
        dir.read(p_.packed, s_);
      } else {
        dir.lay_out(arena_, s_, !in_lanes_ && !input_dots_ && !input_just_in_time_,
                    !in_lanes_ && !plan_.direct && !state_just_in_time_ && !C::kVariant);
      }
      if constexpr (C::kVariant) lay_out_stages(d);
    }
    groups_ = arena_.take<Group>(groups());
    workers_ = arena_.take<Worker>(grid_.workers());
    for (int g = 0; g < groups(); ++g) {
      Group group;
      group.h[0] = arena_.take<E>(out_blocks * group_rows * W);
      group.h[1] = arena_.take<E>(out_blocks * group_rows * W);
      group.h_state = arena_.take<T>(kKeepsState ? out_blocks * group_rows * W : 0);
      group.c = arena_.take<T>(C::kHasCell ? blocks * group_rows * W : 0);
      group.m = arena_.take<E>(s_.P ? blocks * group_rows * W : 0);
      if constexpr (C::kVariant) lay_out_stages(group);
      if (arena_.base) groups_[g] = group;
    }
    for (int r = 0; r < grid_.workers(); ++r) {
      const Range own = own_blocks(units_, r);
      Worker worker;
      worker.gx = arena_.take<T>((own.end - own.begin) * G * W * chunk_rows_);
      worker.x = arena_.take<E>(ceil_div(s_.I, W) * W * chunk_rows_);
      worker.slots = arena_.take<int64_t>(plan_.forward_chunk);
      worker.panel =
          arena_.take<E>(input_just_in_time_ ? Weights::kUnits * panel_size(max_of(s_.I, s_.out_size())) : 0);
      const int64_t lanes = in_lanes_ ? most_group_rows() : 0;
      worker.x_lanes = arena_.take<T>(rows_in_lanes_size<T>(lanes, s_.I));
      worker.h_lanes = arena_.take<T>(rows_in_lanes_size<T>(lanes, s_.out_size()));
      worker.sums = arena_.take<T>(lanes ? lanes * Weights::kUnits * G * W + W : 0);
      if constexpr (C::kVariant) lay_out_stages(worker, own.end - own.begin);
      if (arena_.base) workers_[r] = worker;
    }
    if (arena_.base) reset_barriers();
  }

  // ---- the pass -------------------------------------------------------------------------------

  void run(int begin, int end) {
    if (is_one_row()) return one_row();
    Crew crew(*this, begin, end);
    crew.each([&](int r) { prepare(r); });
    crew.meet_direction();
    crew.apart([&](auto&& own) {
      for (int64_t s0 = 0; s0 < s_.T; s0 += plan_.forward_chunk) {
        const int64_t s1 = min_of(s_.T, s0 + plan_.forward_chunk);
        if (!by_panels_) own.each([&](int r) { project_input(r, s0, s1); });
        if constexpr (C::kVariant) {
          if (on().norm) own.meet_group();  // every part of the rows of gx has been summed
        }
        for (int64_t s = s0; s < s1; ++s) advance(own, s, s - s0);
      }
      if constexpr (C::kVariant) {
        if (streams_) stream_fence();
      }
    });
  }

  // Whether this is one step of rows enough to be the lanes, four fifths of them. On a Zen 4, H = 512, that takes .87
  // of the time with 16 rows, .7 to .8 with 32, .85 to .9 with 64, but more with 12 or fewer.
  bool fits_lanes() const {
    const int64_t rows = most_group_rows(), lanes = ceil_div(rows, kLaneFull * W) * kLaneFull * W;
    return kHasLanes && s_.T == 1 && !p_.packed && !plan_.direct && s_.dtype == Dtype::kFloat &&
           rows >= kLeastInLanes && rows <= kMostInLanes && 5 * rows >= 4 * lanes &&
           (s_.H % W == 0 || s_.H % W >= kLaneUnits);
  }

  // A stream of few units, whose weights are packed: rows and masks are not for streams.
  bool is_one_row() const { return kHasOneRow && p_.packed && s_.B == 1 && few_units(s_); }
  void one_row() {
    if constexpr (kHasOneRow) {
      alignas(64) float h[2][kOneRowUnits] = {}, c[kOneRowUnits] = {};
      const auto copy = [&](const float* from, float* to) {
        for (int64_t i = 0; i < s_.H; ++i) to[i] = from[i];
      };
      const int64_t row = s_.state_row(0) * s_.H;
      copy(static_cast<const float*>(p_.h0) + row, h[0]);
      if constexpr (C::kHasCell) copy(static_cast<const float*>(p_.c0) + row, c);
      const Direction& d = directions_[0];
      const int at = OneRow<CellOf>::run({d.w_ih, d.w_hh, d.bias, d.bias_rec}, s_.I, s_.H, {h[0], h[1]}, 0, c,
                                         static_cast<const float*>(p_.x.data), p_.x.step_stride,
                                         static_cast<float*>(p_.y), s_.T);
      copy(h[at], static_cast<float*>(p_.hn) + row);
      if constexpr (C::kHasCell) copy(c, static_cast<float*>(p_.cn) + row);
    }
  }

  // One step by its stages (cells/cell.h): product, gates, cell and state in one go, tile by tile, so that no value
  // between them leaves the cache; what needs a whole row of what another worker makes comes after a meeting.
  template <class Workers>
  FASTRNN_INLINE void advance(Workers& crew, int64_t s, int64_t s_in_chunk) {
    if constexpr (C::kVariant) {
      advance_stages(crew, s, s_in_chunk);
    } else {
      crew.each([&](int r) { by_panels_ ? only_step(r) : step(r, s, s_in_chunk); });
    }
    if (s_.P) {
      crew.meet_group();  // every unit of m is written before any product reads it
      crew.each([&](int r) { project_output(r, s); });
    }
    crew.meet_group();  // h_t is whole before step t+1 reads it, and h_{t-1} is free to be overwritten
  }

  // Whether what step t leaves in row b's state is not what the row's next step starts from. A row that
  // ends here has no next step, and its state is about to be handed over.
  bool restarts(int direction, int64_t t, int64_t b) const {
    if (!s_.resets) return false;
    return direction ? t > 0 && s_.cut(t, b) : b < s_.active(t + 1) && s_.cut(t + 1, b);
  }

  // Of the n rows of a batch group that run at time t, the first that ends there and hands its state over. A reverse
  // direction ends all of its rows at t = 0.
  int64_t first_ending(int direction, int batch_group, int64_t t, int64_t n) const {
    return direction ? (t > 0 ? n : 0) : rows_at(batch_group, t + 1);
  }

  // ---- before the first step ------------------------------------------------------------------

  // Packs this worker's share of its direction's weights and fills its rows of the state.
  void prepare(int rank) {
    const int d = grid_.direction(rank), b = grid_.batch_group(rank);
    if (!p_.packed) directions_[d].pack(p_.weights[d], s_, packed_by(units_, rank), packed_by(outputs_, rank));
    if constexpr (C::kVariant) pack_stages(rank);
    const Group& group = groups_[grid_.group(rank)];
    if (grid_.unit_group(rank) == 0) {
      const int64_t rows = grid_.rows(s_.B, b);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = d * s_.B + s_.state_row(batch_row(b, i));
        const char* h0 = static_cast<const char*>(p_.h0) + row * s_.out_size() * size_of(s_.dtype);
        block_row<T, Operand>(h0, s_.out_size(), s_.dtype, group.h[0], group_rows_, i);
        block_row<T, Operand>(h0, s_.out_size(), s_.dtype, group.h[1], group_rows_, i);
        if constexpr (kKeepsState) {
          block_row<T, NaturalOperand<T>>(h0, s_.out_size(), s_.dtype, group.h_state, group_rows_, i);
        }
        if constexpr (C::kHasCell) {
          const char* c0 = static_cast<const char*>(p_.c0) + row * s_.H * size_of(s_.dtype);
          block_row<T, NaturalOperand<T>>(c0, s_.H, s_.dtype, group.c, group_rows_, i);
        }
        if constexpr (C::kVariant) {
          if (p_.masks.recurrent) mask_first_state(d, s_.row_of(batch_row(b, i)), group, i);
        }
        if (d == 0 && s_.cut(0, batch_row(b, i))) {
          for (int64_t block = 0; block < outputs_.blocks(); ++block) {
            Operand::store(group.h[0] + (block * group_rows_ + i) * W, V{});
            if constexpr (kKeepsState) S::store(group.h_state + (block * group_rows_ + i) * W, V{});
          }
          for (int64_t block = 0; block < units_.blocks(); ++block) {
            if constexpr (C::kHasCell) S::store(group.c + (block * group_rows_ + i) * W, V{});
          }
        }
      }
    }
  }

  // ---- forward_input.inl ------------------------------------------------------------------------

  void project_input(int rank, int64_t s0, int64_t s1);
  int64_t take_rows(int rank, int64_t s0, int64_t s1);
  void project_panels(int rank, int64_t rows, Range panels);
  void only_step(int rank);
  void input_in_place(int rank, int64_t rows, Range panels);
  void input_tile(int rank, const E* weights, int64_t panel, const Lie& lie, int64_t row, int height,
                  PanelPrefetch& ahead);
  // Offset of a panel inside a worker's gx.
  int64_t gx_offset(int rank, int64_t panel) const {
    const int64_t first = units_.first_block(own_panels(units_, rank).begin);
    return (units_.first_block(panel) - first) * G * W * chunk_rows_;
  }

  // What to prefetch while `panel` of these gate panels is at work, on the way to `last`.
  PanelPrefetch next_panel(const E* weights, int64_t panel, int64_t last, int64_t K) const {
    if (panel == last) return {};
    return far_panel(weights, last > panel ? panel + 1 : panel - 1, K);
  }
  // One of these gate panels, which comes next; nothing where all of them are in the cache already.
  PanelPrefetch far_panel(const E* weights, int64_t panel, int64_t K) const {
    const int64_t block_bytes = panel_size(K) * static_cast<int64_t>(sizeof(E));
    if (!by_panels_ && (units_.blocks() / grid_.unit_groups) * block_bytes < plan_.near_bytes) return {};
    const char* begin = reinterpret_cast<const char*>(weights) + units_.first_block(panel) * block_bytes;
    return {begin, begin + units_.blocks_of(panel) * block_bytes};
  }

  static FASTRNN_INLINE void copy_vectors(const T* from, T* to, int count) {
    for (int v = 0; v < count; ++v) S::store(to + v * W, S::load(from + v * W));
  }

  // A product whose sums begin with rows of `from`, which lie from_row elements apart: a kernel of the compute type
  // reads them where they are (a fiftieth of a product of 256 columns), another finds them in the tile.
  alignas(64) static constexpr T kZeros[kMaxVectors * W] = {};
  static FASTRNN_INLINE void multiply_from(int rows, int vectors, T* tile, const T* from, int64_t from_row,
                                           const E* a, int64_t block_stride, const E* b, int64_t K,
                                           const char* ahead) {
    if constexpr (std::is_same_v<Operand, NaturalOperand<T>>) {
      Operand::multiply_from(rows, vectors, tile, from, from_row, a, block_stride, b, K, ahead);
    } else {
      for (int m = 0; from != tile && m < rows; ++m)
        copy_vectors(from + m * from_row, tile + m * vectors * W, vectors);
      Operand::multiply(rows, vectors, tile, a, block_stride, b, K, ahead);
    }
  }

  // ---- forward_step.inl -------------------------------------------------------------------------

  void step(int rank, int64_t s, int64_t s_in_chunk);
  void step_panels(int rank, int64_t s, int64_t s_in_chunk, Range panels, bool back, int64_t next = -1);
  // weights: a packed panel, or null where they are read where they lie.
  void step_tile(int rank, const E* weights, int64_t s, int64_t t, int64_t panel, const Lie& lie, int64_t row,
                 int height, int64_t slot, const void* after, PanelPrefetch& ahead);
  // Tiles of one row whose products are made at once (row_kernel), of packed weights of the compute type; 0 where
  // every tile is a product of its own. A whole panel goes this way even when no other is left beside it.
  static constexpr int kRowTiles = kRowPanels > 1 && sizeof(E) == sizeof(T) && !C::kVariant ? kRowPanels / kParts : 0;
  bool in_rows(int64_t panel) const {
    return !plan_.direct && !state_just_in_time_ && (panel + 1) * Weights::kUnits * W <= units_.length;
  }
  void step_row(int rank, int64_t s, int64_t t, int64_t panel, int tiles, int64_t slot);
  void finish_tile(const T* tile, const T* gx, int rank, int64_t s, int64_t t, int64_t panel, const Lie& lie,
                   int64_t row, int height);
  void put_output(const UnitAt& where, int64_t b, int64_t y_at, bool cut, const E* h_in, E* h_out, T* h_state, V h);
  void project_output(int rank, int64_t s);
  void output_tile(int rank, int64_t s, int64_t t, int64_t panel, int vectors, int64_t row, int height);
  template <class F>
  void each_gate(const void* weight, int64_t K, int64_t panel, int64_t part_rows, F&& f) const;
  void add_lanes(const void* weight, int64_t K, int64_t panel, const T* lanes, int64_t rows, T* out,
                 int64_t part_rows);
  const void* first_row(const void* weight, int64_t K, int64_t panel) const;
  void add_dots(const void* weight, int64_t K, int64_t panel, const void* after, int height, const E* a,
                int64_t block_stride, T* out, int64_t part_rows);
  void hand_over(int rank, int64_t s, int64_t t, int64_t n);

  // ---- forward_stages.inl -----------------------------------------------------------------------

  const Variant& on() const { return s_.variant; }
  // Of units from `unit` on, for a row of the tensors.
  V recurrent_mask(int direction, int64_t row, int64_t unit, int lanes) const {
    return load_as<T>(p_.masks.recurrent, (direction * s_.B + row) * s_.out_size() + unit, lanes, s_.dtype);
  }
  template <class Workers>
  void advance_stages(Workers& crew, int64_t s, int64_t s_in_chunk);
  void lay_out_stages(int direction);
  void lay_out_stages(Group& group);
  void lay_out_stages(Worker& worker, int64_t blocks);
  void pack_stages(int rank);
  void mask_first_state(int direction, int64_t row, const Group& group, int64_t i);
  void sum_input_rows(int rank, int64_t rows);
  RowMoments<T> moments(int rank, const RowPart<T>* parts, int64_t rows, int64_t row, int per_unit) const;
  void first_product(int rank, int64_t s, int64_t s_in_chunk);
  void hold_reset(const T* tile, int rank, int64_t s, int64_t block, int64_t row, int height);
  void second_product(int rank, int64_t s, int64_t s_in_chunk);
  void normalise(int rank, int64_t s, int64_t s_in_chunk);
  void finish_units(const T* tile, const T* gx, int rank, int64_t s, int64_t panel, int units, int64_t row,
                    int height);
  void put_candidate(int rank, int64_t s, int64_t block, int64_t i, V h);
  void save(int direction, int64_t row, int64_t block, int first, const V* values, int count);
  void emit(int rank, int64_t s);

  const ForwardParams& p_;
  const Panels<T> units_;    // hidden units in gate panels
  const Panels<T> outputs_;  // columns of the output in general panels
  Arena arena_;
  bool streams_ = false;  // a variant's saved values, past the caches
  bool in_lanes_ = false, input_dots_ = false, input_just_in_time_ = false, state_just_in_time_ = false,
       by_panels_ = false;
  int64_t chunk_rows_ = 0, group_rows_ = 0;
  Direction directions_[kMaxDirections] = {};
  Stages stages_[kMaxDirections] = {};
  Group* groups_ = nullptr;
  Worker* workers_ = nullptr;
};

}  // namespace
}  // namespace fastrnn

// The member functions that are only declared above.
