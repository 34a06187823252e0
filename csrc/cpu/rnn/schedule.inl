// The schedule of a pass over a layer: which worker owns what, in which order steps come, and where workers meet.
//
// A worker owns rows (its batch group's) and, of each of them, units (its unit group's). It reads what others of its
// group have written only after a meeting of the group, and what others of its direction have only after one of the
// direction.
#pragma once
#include "cpu/product/pack.inl"
#include "cpu/team.h"
#include "plan/cpu.h"

namespace fastrnn {
namespace {

struct Range {
  int64_t begin, end;
};

class Schedule {
 public:
  int workers() const { return grid_.workers(); }

 protected:
  static constexpr int kMaxDirections = 2;

  // A worker whose group has nobody else: as a Crew of its own, without meetings.
  struct Alone {
    int rank;

    template <class F>
    FASTRNN_INLINE void each(F&& f) const {
      f(rank);
    }
    FASTRNN_INLINE void meet_group() const {}
  };

  // The workers [begin, end) that one thread holds. They go through the pass together, so that a meeting cannot wait
  // for a worker that its own thread has not come to.
  class Crew {
   public:
    Crew(const Schedule& schedule, int begin, int end) : schedule_(schedule), begin_(begin), end_(end) {}

    template <class F>
    FASTRNN_INLINE void each(F&& f) const {
      for (int r = begin_; r < end_; ++r) f(r);
    }

    // f(crew) for steps whose only meetings are those of groups: each worker goes through all of them by itself where
    // its group has nobody else, with what it needs in its cache.
    template <class F>
    FASTRNN_INLINE void apart(F&& f) {
      if (schedule_.grid_.unit_groups > 1) return f(*this);
      each([&](int r) { f(Alone{r}); });
    }

    void meet_direction() {
      const int64_t all = ++direction_meetings_ * schedule_.grid_.workers_a_direction();
      const auto barrier = [&](int r) -> Barrier& { return schedule_.barriers_[schedule_.grid_.direction(r)]; };
      each([&](int r) { barrier(r).arrive(all); });
      each([&](int r) { barrier(r).wait(all); });
    }
    void meet_group() {
      const int64_t all = ++group_meetings_ * schedule_.grid_.unit_groups;
      const auto barrier = [&](int r) -> Barrier& {
        return schedule_.barriers_[kMaxDirections + schedule_.grid_.group(r)];
      };
      each([&](int r) { barrier(r).arrive(all); });
      each([&](int r) { barrier(r).wait(all); });
    }

   private:
    const Schedule& schedule_;
    const int begin_, end_;
    int64_t direction_meetings_ = 0, group_meetings_ = 0;
  };

  Schedule(const LayerShape& shape, const CpuPlan& plan)
      : s_(shape), plan_(plan), grid_{shape.D, plan.batch_groups, plan.unit_groups} {}

  void take_barriers(Arena& arena) { barriers_ = arena.take<Barrier>(kMaxDirections + groups()); }
  void reset_barriers() {
    for (int b = 0; b < kMaxDirections + groups(); ++b) barriers_[b].reset();
  }

  // ---- who owns what ----------------------------------------------------------------------------

  int groups() const { return grid_.directions * grid_.batch_groups; }
  int64_t most_group_rows() const { return ceil_div(s_.B, grid_.batch_groups); }

  template <class T>
  Range own_panels(const Panels<T>& panels, int rank) const {
    const int64_t n = panels.count(), q = grid_.unit_group(rank);
    return {n * q / grid_.unit_groups, n * (q + 1) / grid_.unit_groups};
  }
  template <class T>
  Range own_blocks(const Panels<T>& panels, int rank) const {
    const Range own = own_panels(panels, rank);
    return {min_of(panels.first_block(own.begin), panels.blocks()),
            min_of(panels.first_block(own.end), panels.blocks())};
  }
  // Of panels that are packed before the first step, those that this worker packs: of its own units, whose panels it
  // alone reads at every step (from another core's cache they would come at a third of the speed); batch groups,
  // which all read them, take turns.
  template <class T>
  Turns packed_by(const Panels<T>& panels, int rank) const {
    const Range own = own_panels(panels, rank);
    return {own.begin + grid_.batch_group(rank), own.end, grid_.batch_groups};
  }
  // Of what all workers of a direction share, whatever their groups.
  Range share_of(int rank, int64_t count) const {
    const int64_t n = grid_.workers_a_direction(), share = rank % n;
    return {count * share / n, count * (share + 1) / n};
  }

  // ---- time -------------------------------------------------------------------------------------

  // The time of the direction's s-th step.
  int64_t time_of(int direction, int64_t s) const { return direction ? s_.T - 1 - s : s; }
  // Rows of a batch group that run at time t.
  int64_t rows_at(int batch_group, int64_t t) const { return grid_.rows(s_.active(t), batch_group); }
  // Row i of a batch group as a row of the batch.
  int64_t batch_row(int batch_group, int64_t i) const { return batch_group + i * grid_.batch_groups; }

  const LayerShape& s_;
  const CpuPlan plan_;
  const Grid grid_;

 private:
  Barrier* barriers_ = nullptr;  // of the directions, then of their groups
};

}  // namespace
}  // namespace fastrnn
