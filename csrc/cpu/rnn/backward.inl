// Backward pass of one layer over the whole sequence, in chunks of steps from the last to the first:
//   1. (recompute mode) the chunk's gates, as one product each with W_ih and W_hh;
//   2. step by step: the cell's derivative gives dg_t, then dh_{t-1} = dg_t W_hh;
//   3. for the whole chunk at once: grad_x = dg W_ih, grad_W_ih += dg^T x, grad_W_hh += dg^T h_prev
//      and the bias sums, while dg is still in the cache.
//
// Layouts (T = compute type, W lanes a register, R rows of a batch group, M rows of a chunk; dg, the output's
// gradient of a projection and the packed weights are operands of products and hold E of operand.inl):
//   dg a direction   blocked [(G + split) * blocks][M][W]  gradients of the gates; a split gate has
//                    two, of its input part and (last) of its recurrent part. Pairs are of units for the
//                    products with weights, and of rows, in the same place, for the gradients of these
//   dh, dc a group   blocked [blocks][R][W]                what reaches h and c from later steps
// Rows of a chunk ("slots") are ordered by time, then batch group, then row, so a group's rows of a
// step lie together.
//
// Costs a step: 2*B*G*H*Hout flops, and as much again for each of grad_x (with I), grad_W_ih and
// grad_W_hh. Nothing that forward saved is written to.
#pragma once
#include "cpu/product/operand.inl"
#include "cpu/rnn/heads.inl"
#include "cpu/rnn/row_sums.inl"
#include "cpu/rnn/schedule.inl"
#include "cpu/rnn/weight_gradient.inl"

namespace fastrnn {
namespace {

template <class T, template <class> class CellOf, class Operand>
class Backward : private Schedule {
  using E = typename Operand::E;
  using S = Simd<T>;
  using V = typename S::V;
  using C = CellOf<VectorMath<T>>;
  static constexpr int W = S::W;
  static constexpr int G = C::kGates;
  static constexpr int kPartGates = gates_a_tile(G), kParts = G / kPartGates;  // of a tile of gates
  static constexpr int kColumns = G + (C::kSplit ? 1 : 0);

  // The gate of dg whose gradient belongs to recurrent gate g.
  FASTRNN_INLINE int recurrent_column(int g) const {
    if (C::kVariant && s_.variant.norm) return G + g;  // each gate has two
    return C::kSplit && g == G - 1 ? G : g;
  }

 public:
  Backward(const BackwardParams& params, const CpuPlan& plan, char* workspace)
      : Schedule(params.shape, plan),
        p_(params),
        units_{s_.H, panel_blocks(s_.H)},
        outputs_{s_.out_size(), panel_blocks(s_.out_size())},
        inputs_{s_.I, kPanelVectors} {
    arena_.base = workspace;
    recompute_ = C::kSaved > 0 && !p_.gates && !C::kVariant;
    natural_ = (plan_.direct || s_.T == 1) && size_of(s_.dtype) == sizeof(T);
    lay_out();
  }

  size_t workspace_bytes() const { return arena_.used; }

  static void body(int64_t begin, int64_t end, void* self) {
    static_cast<Backward*>(self)->run(static_cast<int>(begin), static_cast<int>(end));
  }

  using Schedule::workers;

 private:
  // Where a chunk row finds what it needs in natural tensors.
  struct Slot {
    const char* x;
    const char* h_prev;  // layer dtype
    const T* c_prev;
    int64_t row;  // of y, gates, cells, grad_x
    bool cut;     // the state before it is zero, and no gradient goes there
  };
  struct Direction {
    E* w_hh;  // row panels over Hout, of each gate K = H
    E* w_hr;  // row panels over H, K = P
    T* c0;    // (B, H) in the compute dtype
    E* dg;
    E* dh_out;  // projection: gradient of the projected output, blocked [ceil(P/W)][M][W]
    E* m;       // projection: output before it, rows of blocks*W
    Slot* slots;
    // recompute mode
    E* gate_w_ih;
    E* gate_w_hh;
    T* bias;
    T* bias_rec;
    T* gates;  // [M][kSaved][blocks*W]
  };
  // Sums over a part of a row: of e, and of e * normalised (cells/policies/norm.h).
  struct NormSums {
    T e, product;
  };
  struct Group {
    T* dh;  // over Hout
    T* dm;  // projection: over H
    T* dc;
    // Of a variant: gradient of r * h, and the sums that the group's workers have, [unit group][row].
    T* d_reset_h;
    NormSums *x_sums, *h_sums, *c_sums;
  };
  // Of a variant and direction: row panels with heads, vectors of the padded units, and rows [M][Hout] of h as the
  // product saw it and of r times that.
  struct Stages {
    T* w_hh;
    T* vectors[kStageVectors<G>];
    T *h_rows, *reset_rows;
  };
  struct OwnRow {
    int64_t slot;
    const T* c_prev;
    int64_t t, row;  // of the tensors
  };
  struct Worker {
    E* panel;  // scratch of WeightGradient
    E* w_ih;   // a row panel over I of some gates, packed just before its use
    T* tile;   // [rows of a share][kPanelVectors*W], grad_x over several passes
    E* x;      // recompute: blocked rows of this worker
    E* h;
    OwnRow* own_rows;
    // Of a variant: gradients of its vectors over this worker's rows and units, of a chunk and of all before it;
    // rows' moments, and what an LSTM whose c is normalised has found of o and c, [own blocks][R][W].
    T* vector_sums;
    double* vector_totals;
    RowMoments<T>* moments;  // [x, h, c][row]
    T *d_out_gate, *d_seen;
  };
  struct Chunk {
    int64_t s_begin, s_end;  // in processing order
    int64_t t_begin;         // earliest time
    int64_t rows;
    bool first;  // of this call: gradients are written, not added to
  };

  // ---- memory ---------------------------------------------------------------------------------

  // Blocks of a panel that the unit groups share out: as many as a tile has, or one less where that makes the largest
  // share smaller by a tenth. Of 12 blocks two workers would have 4 and 8, and one wait for the other every step.
  int panel_blocks(int64_t length) const {
    if constexpr (C::kVariant || kPanelVectors < 4) return kPanelVectors;
    const auto most = [&](int width) {
      const Panels<T> panels{length, width};
      int64_t most = 0;
      for (int q = 0; q < grid_.unit_groups; ++q) {
        const Range own = own_blocks(panels, q);
        most = max_of(most, own.end - own.begin);
      }
      return most;
    };
    return 10 * most(kPanelVectors - 1) <= 9 * most(kPanelVectors) ? kPanelVectors - 1 : kPanelVectors;
  }

  int64_t row_length() const { return units_.blocks() * W; }
  // Elements of a block of gates in a panel of the weights that recompute reads.
  static int64_t gate_size(int64_t K) { return G * W * Operand::depth(K); }

  void lay_out() {
    const int64_t blocks = units_.blocks(), out_blocks = outputs_.blocks();
    group_rows_ = spread_rows(most_group_rows());
    chunk_rows_ = 0;  // of the busiest chunk of either direction
    for (int d = 0; d < s_.D; ++d) {
      for (int64_t s_end = s_.T; s_end > 0; s_end -= plan_.backward_chunk) {
        chunk_rows_ = max_of(chunk_rows_, chunk_before(d, s_end).rows);
      }
    }
    chunk_rows_ = Operand::spread(chunk_rows_);
    const int64_t M = chunk_rows_;
    take_barriers(arena_);
    zeros_ = arena_.take<T>(s_.resets ? max_of(out_blocks, blocks) * W : 0);
    for (int d = 0; d < s_.D; ++d) {
      Direction& dir = directions_[d];
      dir.w_hh = take_panels(outputs_, G * Operand::depth(s_.H));
      if (s_.P) dir.w_hr = take_panels(units_, Operand::depth(s_.P));
      dir.c0 = arena_.take<T>(C::kHasCell ? s_.B * s_.H : 0);
      dir.dg = arena_.take<E>((C::kVariant && s_.variant.norm ? 2 * G : kColumns) * blocks * M * W);
      if constexpr (C::kVariant) lay_out_stages(d);
      dir.dh_out = arena_.take<E>(s_.P ? out_blocks * M * W : 0);
      dir.m = arena_.take<E>(s_.P && p_.need_weights ? M * row_length() : 0);
      dir.slots = arena_.take<Slot>(M);
      if (recompute_) {
        dir.gate_w_ih = arena_.take<E>(blocks * gate_size(s_.I));
        dir.gate_w_hh = arena_.take<E>(blocks * gate_size(s_.out_size()));
        dir.bias = arena_.take<T>(blocks * G * W);
        dir.bias_rec = arena_.take<T>(blocks * W);
        dir.gates = arena_.take<T>(M * C::kSaved * row_length());
      }
    }
    groups_ = arena_.take<Group>(groups());
    workers_ = arena_.take<Worker>(grid_.workers());
    for (int g = 0; g < groups(); ++g) {
      Group group;
      group.dh = arena_.take<T>(out_blocks * group_rows_ * W);
      group.dm = arena_.take<T>(s_.P ? blocks * group_rows_ * W : 0);
      group.dc = arena_.take<T>(C::kHasCell ? blocks * group_rows_ * W : 0);
      if constexpr (C::kVariant) lay_out_stages(group);
      if (arena_.base) groups_[g] = group;
    }
    const int64_t own_rows = spread_rows(min_of(M, plan_.backward_chunk * group_rows_));
    for (int r = 0; r < grid_.workers(); ++r) {
      Worker worker;
      worker.panel = arena_.take<E>(p_.need_weights ? WeightGradient<T, Operand>::buffer_size(M) : 0);
      worker.w_ih = arena_.take<E>(
          p_.grad_x[grid_.direction(r)] && !natural(inputs_, inputs_.count() - 1) ? largest_pass() : 0);
      worker.tile = arena_.take<T>(
          p_.grad_x[grid_.direction(r)] ? ceil_div(M, grid_.workers_a_direction()) * kPanelVectors * W : 0);
      worker.x = arena_.take<E>(recompute_ ? inputs_.blocks() * own_rows * W : 0);
      worker.h = arena_.take<E>(recompute_ ? out_blocks * own_rows * W : 0);
      worker.own_rows = arena_.take<OwnRow>(recompute_ ? own_rows : 0);
      if constexpr (C::kVariant) lay_out_stages(worker, own_blocks(units_, r));
      if (arena_.base) workers_[r] = worker;
    }
    own_rows_ = own_rows;
    if (arena_.base) {
      reset_barriers();
      if (s_.resets) __builtin_memset(zeros_, 0, max_of(out_blocks, blocks) * W * sizeof(T));
    }
  }

  // Room for packed panels: none where every panel is read from the natural weight.
  E* take_panels(const Panels<T>& columns, int64_t K) {
    return arena_.take<E>(natural(columns, columns.count() - 1) ? 0 : columns.blocks() * W * K);
  }

  // First chunk row of batch group p at time t.
  int64_t first_slot(const Chunk& chunk, int64_t t, int p) const {
    const int64_t n = s_.active(t), groups = grid_.batch_groups;
    return s_.row_offset(t) - s_.row_offset(chunk.t_begin) + p * (n / groups) + min_of<int64_t>(p, n % groups);
  }

  Chunk chunk_before(int direction, int64_t s_end) const {
    Chunk chunk;
    chunk.s_end = s_end;
    chunk.s_begin = max_of<int64_t>(0, s_end - plan_.backward_chunk);
    chunk.t_begin = direction ? s_.T - s_end : chunk.s_begin;
    chunk.rows = s_.row_offset(chunk.t_begin + s_end - chunk.s_begin) - s_.row_offset(chunk.t_begin);
    chunk.first = s_end == s_.T;
    return chunk;
  }

  // ---- the pass -------------------------------------------------------------------------------

  void run(int begin, int end) {
    Crew crew(*this, begin, end);
    crew.each([&](int r) { prepare(r); });
    crew.meet_direction();
    for (int64_t s_end = s_.T; s_end > 0;) {
      const Chunk chunks[] = {chunk_before(0, s_end), chunk_before(s_.D - 1, s_end)};
      const auto chunk_of = [&](int r) -> const Chunk& { return chunks[s_.D == 1 ? 0 : grid_.direction(r)]; };
      const int64_t s_begin = chunks[0].s_begin;
      if constexpr (!C::kVariant) {
        if (recompute_) crew.each([&](int r) { recompute_gates(r, chunk_of(r)); });
      }
      crew.apart([&](auto&& own) {
        for (int64_t s = s_end - 1; s >= s_begin; --s) retreat(own, chunk_of, s);
      });
      crew.meet_direction();  // all of the chunk's dg
      crew.each([&](int r) {
        if (p_.grad_x[grid_.direction(r)]) input_gradient(r, chunk_of(r));
      });
      if (Operand::kJoins && p_.need_weights) {
        crew.meet_direction();  // every row of dg has been read in terms of units
        crew.each([&](int r) { join_rows(r, chunk_of(r)); });
      }
      crew.each([&](int r) { finish_chunk(r, chunk_of(r)); });
      crew.meet_direction();  // dg is free again
      s_end = s_begin;
    }
    crew.each([&](int r) { store_state_gradients(r); });
    if constexpr (C::kVariant) crew.each([&](int r) { store_vector_gradients(r); });
  }

  // One step back, by its stages in reverse (cells/cell.h): state, cell and gates unit by unit, then the product.
  template <class Workers, class ChunkOf>
  FASTRNN_INLINE void retreat(Workers& crew, ChunkOf&& chunk_of, int64_t s) {
    if (s_.P) {
      crew.each([&](int r) { gather_output_gradient(r, chunk_of(r), s); });
      crew.meet_group();  // the whole gradient of h is there before anyone multiplies it by W_hr
      crew.each([&](int r) { project_back(r, chunk_of(r), s); });
    }
    if constexpr (C::kVariant) return retreat_stages(crew, chunk_of, s);
    crew.each([&](int r) { pointwise(r, chunk_of(r), s); });
    crew.meet_group();  // every gate of dg_t is written before anyone multiplies it by W_hh
    crew.each([&](int r) { propagate(r, chunk_of(r), s); });
  }

  // ---- where things lie -------------------------------------------------------------------------

  // Fills what a chunk row needs to find its neighbours in natural tensors.
  Slot slot_at(int d, int64_t t, int64_t b) const {
    Slot slot;
    const int64_t element = static_cast<int64_t>(size_of(s_.dtype)), out = s_.out_size();
    slot.x = static_cast<const char*>(p_.x.data) + row_start(s_, p_.x, t, b) * element;
    slot.row = s_.tensor_row(t, b);
    slot.cut = s_.cut(d ? t + 1 : t, b);
    const int64_t before = d ? t + 1 : t - 1;
    const bool starts = before < 0 || b >= s_.active(before);
    if (d && starts) slot.cut = false;  // the reverse direction begins here, with its h0
    if (slot.cut) {
      slot.h_prev = reinterpret_cast<const char*>(zeros_);
    } else if (starts) {
      slot.h_prev = static_cast<const char*>(p_.h0) + (d * s_.B + s_.row_of(b)) * out * element;
    } else {
      slot.h_prev = static_cast<const char*>(p_.y) + (s_.tensor_row(before, b) * s_.D + d) * out * element;
    }
    slot.c_prev = nullptr;
    if constexpr (C::kHasCell) {
      slot.c_prev = slot.cut ? zeros_
                    : starts ? directions_[d].c0 + s_.row_of(b) * s_.H
                             : static_cast<const T*>(p_.cells) + (d * s_.rows() + s_.tensor_row(before, b)) * s_.H;
    }
    return slot;
  }

  // A panel of a right operand: rows of `ld` elements, H of them a gate.
  struct Panel {
    const E* data;
    int64_t ld;
    int first_gate = 0;
  };

  // Whether a panel is read from the natural weight: few rows do not repay a copy. A last panel that
  // is not whole is copied all the same, since kernels read whole vectors.
  bool natural(const Panels<T>& columns, int64_t panel) const {
    const int64_t last = columns.first_block(panel) + columns.blocks_of(panel) - 1;
    return natural_ && columns.lanes(last) == W;
  }
  Panel panel_of(const Panels<T>& columns, int64_t panel, const E* packed, const void* weight, int64_t K) const {
    const int64_t first = columns.first_block(panel);
    if (natural(columns, panel)) return {static_cast<const E*>(weight) + first * W, columns.length};
    return {packed + first * W * K, columns.blocks_of(panel) * W};
  }

  // What to prefetch while gates [g, g + pass) of `panel` are at work: the panel's next gates, then
  // the next panel's first (packed panels follow one another in memory).
  PanelPrefetch next_gates(const Panels<T>& columns, Panel panel, int vectors, int g, int pass) const {
    const int64_t gate = Operand::depth(s_.H) * static_cast<int64_t>(sizeof(E));  // bytes of a column
    if (natural_ || G * gate * columns.blocks() * W < plan_.near_bytes) return {};
    const char* begin = reinterpret_cast<const char*>(panel.data) + min_of(G, g + pass) * gate * panel.ld;
    return {begin, begin + pass * gate * vectors * W};
  }

  // Gates a pass, so that the panel's part and the next one stay in the L2 cache while the rows go by.
  int gates_a_pass(int vectors) const {
    const int64_t gate = Operand::depth(s_.H) * vectors * W * static_cast<int64_t>(sizeof(E));
    return static_cast<int>(min_of<int64_t>(G, max_of<int64_t>(1, plan_.near_bytes / 2 / gate)));
  }
  // Elements of the largest such part. That may be a narrow panel's: two gates with three vectors each, where only
  // one fits with four.
  int64_t largest_pass() const {
    int64_t most = 0;
    for (int v = 1; v <= kPanelVectors; ++v) most = max_of<int64_t>(most, gates_a_pass(v) * v);
    return most * Operand::depth(s_.H) * W;
  }

  // ---- backward_ends.inl ------------------------------------------------------------------------

  void prepare(int rank);
  void load_state_gradient(int rank, const Panels<T>& columns, const void* gradient, T* out);
  void store_state_gradients(int rank);

  // ---- backward_step.inl ------------------------------------------------------------------------

  void pointwise(int rank, const Chunk& chunk, int64_t s);
  void add_gates(T* tile, int rows, int vectors, const Direction& dir, int64_t slot, Panel panel, int g0, int g1,
                 bool recurrent, PanelPrefetch& ahead) const;
  void propagate(int rank, const Chunk& chunk, int64_t s);
  void stop_at_resets(int rank, int64_t slot0, int64_t rows);
  void store_blocked(const T* tile, int rows, int vectors, T* to) const;
  void gather_output_gradient(int rank, const Chunk& chunk, int64_t s);
  void project_back(int rank, const Chunk& chunk, int64_t s);

  // ---- backward_recompute.inl -------------------------------------------------------------------

  void pack_gates(int rank);
  void recompute_gates(int rank, const Chunk& chunk);
  void recompute_tile(int rank, int64_t block, int64_t row, int height);

  // ---- backward_chunk.inl -----------------------------------------------------------------------

  void join_rows(int rank, const Chunk& chunk);
  void finish_chunk(int rank, const Chunk& chunk);
  Panel input_panel(int rank, int64_t p, int g0, int g1) const;
  void input_gradient(int rank, const Chunk& chunk);

  // ---- backward_stages.inl ----------------------------------------------------------------------

  using At = StageVector<G>;
  static constexpr int kBias = kStageVectors<G>, kVectorSums = kBias + G + 1;  // with a norm, biases are such sums
  const Variant& on() const { return s_.variant; }
  bool has_vectors() const { return p_.need_weights && (on().peephole || on().norm); }
  void lay_out_stages(int direction);
  void lay_out_stages(Group& group);
  void lay_out_stages(Worker& worker, Range own);
  void pack_stages(int rank);
  template <class Workers, class ChunkOf>
  void retreat_stages(Workers& crew, ChunkOf&& chunk_of, int64_t s);
  void add_to(T* sum, V v) const { S::store(sum, S::load(sum) + v); }
  V recurrent_mask(int direction, int64_t row, int64_t unit, int lanes) const;
  const char* saved_row(int direction, int64_t row) const;
  V saved_at(const char* row, int k, int64_t block, int lanes) const;
  void fetch_saved(const char* row, int64_t block) const;
  V candidate_at(int direction, const Slot& slot, int64_t t, int64_t block) const;
  V output_gradient(int rank, int64_t t, int64_t i, int64_t block, V& kept) const;
  void units_backward(int rank, const Chunk& chunk, int64_t s);
  void keep_rows(int rank, const Chunk& chunk, int64_t s);
  template <class F>
  void multiply_gates(int rank, int64_t panel, int g0, int g1, int64_t slot0, int64_t n, F&& put);
  void reset_backward(int rank, const Chunk& chunk, int64_t s);
  void propagate_stages(int rank, const Chunk& chunk, int64_t s);

  // ---- backward_norm.inl ------------------------------------------------------------------------

  RowMoments<T> saved_moments(const char* row, int first) const;
  RowMoments<T> moments_of(const RowPart<T>& part, int per_unit) const;
  NormSums means(const NormSums* sums, int64_t row, int per_unit) const;
  void emit_backward(int rank, const Chunk& chunk, int64_t s);
  void norm_product(int rank, const Chunk& chunk, int64_t s);

  // ---- backward_stages_chunk.inl ----------------------------------------------------------------

  void finish_stages(int rank, const Chunk& chunk);
  void store_vector_gradients(int rank);

  const BackwardParams& p_;
  const Panels<T> units_;    // hidden units
  const Panels<T> outputs_;  // columns of h
  const Panels<T> inputs_;   // columns of x
  Arena arena_;
  bool recompute_ = false;
  bool natural_ = false;  // weights are read where they lie
  int64_t chunk_rows_ = 0, group_rows_ = 0, own_rows_ = 0;
  T* zeros_ = nullptr;  // the state before a reset
  Direction directions_[kMaxDirections] = {};
  Stages stages_[kMaxDirections] = {};
  Group* groups_ = nullptr;
  Worker* workers_ = nullptr;
};

}  // namespace
}  // namespace fastrnn

// The member functions that are only declared above.
