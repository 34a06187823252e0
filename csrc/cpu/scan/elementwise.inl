// What both passes of the recurrences of cells/elementwise.h share. Like the SRU's scan, on whose columns they stand,
// they are bound by memory: a worker walks through time with its share of the columns, each input is read and each
// result written once, and the state stays in the cache.
//
// Where there are too few columns for the threads, time is shared out too. A recurrence that is linear in its state
// makes A h + r of any state h that comes into a part of the sequence. So each worker finds A and r of its part (the
// first one, whose state is known, walks through it at once), they meet, and each walks through the part behind it
// from the state that those before make of the first. Where A, r or a state is no finite number, A h + r may be
// something else than what the steps give, one after the other; there the steps are taken.
#pragma once
#include "cells/elementwise.h"
#include "cpu/scan/columns.inl"

namespace fastrnn {
namespace {

// What a walk through some steps is for: results, or A and what the steps make of the state that they begin with, r
// of 0. Where steps are taken since A h + r may be something else, they are those that make r: compiled once, they
// join multiplications and additions in one way, and nobody's last bit depends on whether another part has a NaN.
enum class Walk { kResults, kState };

// A pass gives row<kWalk>(at, segment, work); descending(), whether it goes against time; first_state() and
// last_state(), what it begins with and where its end goes, rows of the layer's type or null; and begin_segment() and
// end_segment(), around the columns of a worker that has all steps.
template <class T, Dtype kDtype, template <class> class CellOf>
class Elementwise : protected Scan<T, kDtype, CellOf> {
 protected:
  using Base = Scan<T, kDtype, CellOf>;
  using Base::arena_, Base::s_;
  using typename Base::Cell;
  using typename Base::S;
  using typename Base::V;
  using typename Base::Visit;

  // A worker's memory, of the columns that it has in hand: [row][padded width].
  struct Work {
    T* state;
    T* product;  // A, of a walk for the state
    T* weights;
    int64_t first_row = 0;
    // Of the weight's gradient: what has been added up in floats, how many rows, and all before them.
    T* sums = nullptr;
    int64_t* rows_in_sums = nullptr;
    double* total = nullptr;
  };

  Elementwise(const ElementwiseInputs& in, const ElementwisePlan& plan, char* workspace)
      : Base(in.scan, plan, workspace), e_(in), shares_(plan), option_(in.option) {
    const int64_t width = this->widest(), workers = plan.all_workers();
    slots_ = turn() * width;
    state_ = arena_.template take<T>(workers * slots_);
    entering_ = arena_.template take<T>(parts() > 1 ? workers * slots_ : 0);
    product_ = arena_.template take<T>(parts() > 1 ? workers * slots_ : 0);
    unread_ = arena_.template take<T>(parts() > 1 ? workers * slots_ : 0);
    weights_ = arena_.template take<T>(Cell::kWeights ? workers * width : 0);
    zeros_ = arena_.template take<T>(width);
    barrier_ = arena_.template take<Barrier>(1);
    if (!workspace) return;
    this->clear_state(zeros_, width);
    barrier_->reset();
  }

  int parts() const { return shares_.time_groups > 1 ? shares_.time_groups + 1 : 1; }
  // Rows that a worker takes at once; all of its own where time is shared out, of which there are few.
  int64_t turn() const {
    if (shares_.time_groups > 1) return ceil_div(s_.B, shares_.batch_groups);
    return this->rows_at_once(this->widest());
  }

  // f(visit) for the steps [begin, end) of the walk, which goes through time or against it.
  template <class F>
  void for_part(bool descending, int64_t begin, int64_t end, int64_t first_row, int64_t last_row, int64_t width,
                F&& f) const {
    const int64_t row_bytes = Cell::kInputs * width * static_cast<int64_t>(size_of(kDtype));
    const int64_t lead = max_of(int64_t{1}, Base::kAhead / max_of(row_bytes, int64_t{1}));
    const int64_t rows = last_row - first_row;
    for (int64_t s = begin; s < end; ++s) {
      for (int64_t b = first_row; b < last_row; ++b) {
        const int64_t ahead = min_of((s - begin) * rows + (b - first_row) + lead, (end - begin) * rows - 1);
        const int64_t ahead_s = begin + ahead / rows;
        f(Visit{descending ? s_.T - 1 - s : s, b, descending ? s_.T - 1 - ahead_s : ahead_s,
                first_row + ahead % rows});
      }
    }
  }

  // All of a call, for the workers [begin, end): Pass is this, as its own class.
  template <class Pass>
  void run(Pass& pass, int begin, int end) {
    if (parts() == 1) {
      for (int r = begin; r < end; ++r) alone(pass, r);
    } else {
      for (int r = begin; r < end; ++r) {
        first_half(pass, r);
        barrier_->arrive(shares_.all_workers());
      }
      barrier_->wait(shares_.all_workers());
      for (int r = begin; r < end; ++r) second_half(pass, r);
    }
    stream_fence();
  }

  int64_t begin_of(int part) const { return s_.T * part / parts(); }
  T* slots(T* of, int rank) const { return of + rank * slots_; }
  Work work_of(int rank) const {
    const int64_t width = this->widest();
    return {slots(state_, rank), nullptr, weights_ + rank * width};
  }

  template <Walk kWalk, class Pass>
  void walk(Pass& pass, const Segment& segment, int part, int64_t first_row, int64_t last_row, const Work& work) {
    this->for_part(pass.descending(), begin_of(part), begin_of(part + 1), first_row, last_row,
                   this->padded(segment.width),
                   [&](const Visit& at) { pass.template row<kWalk>(at, segment, work); });
  }

  template <class Pass>
  void alone(Pass& pass, int rank) {
    const int64_t rows_end = this->first_row(this->batch_group(rank) + 1);
    this->for_segments(rank, [&](const Segment& segment) {
      Work work = work_of(rank);
      load_weights(segment, work.weights);
      pass.begin_segment(rank, segment, work);
      for (int64_t begin = this->first_row(this->batch_group(rank)); begin < rows_end; begin += turn()) {
        const int64_t end = min_of(rows_end, begin + turn());
        work.first_row = begin;
        this->load_state(pass.first_state(), segment, begin, end, work.state);
        walk<Walk::kResults>(pass, segment, 0, begin, end, work);
        if (pass.last_state()) this->store_state(work.state, segment, begin, end, pass.last_state());
      }
      pass.end_segment(rank, segment, work);
    });
  }

  // Ranks: the columns' own innermost, then the parts.
  int columns_of(int rank) const { return rank % shares_.workers(); }
  int part_of(int rank) const { return rank / shares_.workers(); }
  int64_t rows_begin(int rank) const { return this->first_row(this->batch_group(columns_of(rank))); }
  int64_t rows_end(int rank) const { return this->first_row(this->batch_group(columns_of(rank)) + 1); }

  template <class Pass>
  void first_half(Pass& pass, int rank) {
    if constexpr (Cell::kLinear) {
      const int64_t begin = rows_begin(rank), end = rows_end(rank);
      this->for_segments(columns_of(rank), [&](const Segment& segment) {
        Work work = work_of(rank);
        work.first_row = begin;
        const int64_t width = this->padded(segment.width);
        if (part_of(rank) == 0) {
          this->load_state(pass.first_state(), segment, begin, end, work.state);
          walk<Walk::kResults>(pass, segment, 0, begin, end, work);
          return;
        }
        work.product = slots(product_, rank);
        for (int64_t j = 0; j < (end - begin) * width; j += Base::W) {
          S::store(work.state + j, V{});
          S::store(work.product + j, S::set(1));
        }
        walk<Walk::kState>(pass, segment, part_of(rank), begin, end, work);
      });
    }
  }

  template <class Pass>
  void second_half(Pass& pass, int rank) {
    if constexpr (Cell::kLinear) {
      const int64_t begin = rows_begin(rank), end = rows_end(rank);
      this->for_segments(columns_of(rank), [&](const Segment& segment) {
        Work work = work_of(rank);
        work.first_row = begin;
        work.state = slots(entering_, rank);
        work.product = slots(unread_, rank);
        const int64_t size = (end - begin) * this->padded(segment.width);
        const T* first = slots(state_, columns_of(rank));
        for (int64_t j = 0; j < size; j += Base::W) S::store(work.state + j, S::load(first + j));
        for (int part = 1; part <= part_of(rank); ++part) {
          const int other = part * shares_.workers() + columns_of(rank);
          if (!pass_on(work.state, slots(product_, other), slots(state_, other), size)) {
            this->clear_state(work.product, size);
            walk<Walk::kState>(pass, segment, part, begin, end, work);
          }
        }
        walk<Walk::kResults>(pass, segment, part_of(rank) + 1, begin, end, work);
        if (part_of(rank) + 2 == parts() && pass.last_state()) {
          this->store_state(work.state, segment, begin, end, pass.last_state());
        }
      });
    }
  }

  // state = product * state + rest; false, and nothing done, where one of them is no finite number.
  static bool pass_on(T* state, const T* product, const T* rest, int64_t size) {
    V found{};
    for (int64_t j = 0; j < size; j += Base::W) {
      const V zero = S::set(0);
      found += S::load(state + j) * zero + S::load(product + j) * zero + S::load(rest + j) * zero;
    }
    alignas(64) T lanes[Base::W];
    S::store(lanes, found);
    for (T lane : lanes) {
      if (!(lane == 0)) return false;
    }
    for (int64_t j = 0; j < size; j += Base::W) {
      S::store(state + j, S::load(product + j) * S::load(state + j) + S::load(rest + j));
    }
    return true;
  }

  void load_weights(const Segment& segment, T* to) const {
    if constexpr (Cell::kWeights > 0) {
      for (int64_t j = 0; j < segment.width; j += Base::W) {
        const int n = static_cast<int>(min_of<int64_t>(Base::W, segment.width - j));
        S::store(to + j, load_as<T>(e_.weight, segment.first + j, n, kDtype));
      }
    }
  }

  const ElementwiseInputs& e_;
  const ElementwisePlan& shares_;
  const bool option_;
  T *state_, *entering_, *product_, *unread_, *weights_, *zeros_;
  int64_t slots_;
  Barrier* barrier_;
};

}  // namespace
}  // namespace fastrnn
