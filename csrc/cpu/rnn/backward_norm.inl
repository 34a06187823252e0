// Layer norm on a variant's step back (cells/policies/norm.h): the moments of what forward saved, and what passes the
// norms; see backward_stages.inl.
#pragma once
#include "cpu/rnn/backward.inl"

namespace fastrnn {
namespace {

// Moments of G values a unit that forward saved of a row, from value `first` on. In one pass (Welford 1962), whose
// chains are as many as the gates'.
template <class T, template <class> class CellOf, class Operand>
inline RowMoments<T> Backward<T, CellOf, Operand>::saved_moments(const char* row, int first) const {
  V mean[G] = {}, squares[G] = {};
  RowSum sum{};
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
  sum.add(part_of<G>(units_, rest,
                     [&](int64_t block, int g) { return saved_at(row, first + g, block, units_.lanes(block)); }),
          static_cast<double>(units_in(units_, rest) * G));
  return sum.template moments<T>(on().eps);
}

template <class T, template <class> class CellOf, class Operand>
inline RowMoments<T> Backward<T, CellOf, Operand>::moments_of(const RowPart<T>& part, int per_unit) const {
  RowSum sum{};
  sum.add(part, static_cast<double>(s_.H * per_unit));
  return sum.template moments<T>(on().eps);
}

template <class T, template <class> class CellOf, class Operand>
inline auto Backward<T, CellOf, Operand>::means(const NormSums* sums, int64_t row, int per_unit) const -> NormSums {
  T e = 0, product = 0;
  for (int q = 0; q < grid_.unit_groups; ++q) {
    e += sums[q * group_rows_ + row].e;
    product += sums[q * group_rows_ + row].product;
  }
  const T count = static_cast<T>(s_.H * per_unit);
  return {e / count, product / count};
}

// An LSTM whose h sees a normalised c: o's gradient, and that of the normalised c with its sums.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::emit_backward(int rank, const Chunk& chunk, int64_t s) {
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
          moments_of(part_of<1>(units_, {0, units_.blocks()},
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

// Through the norms of both products, whose sums are whole.
template <class T, template <class> class CellOf, class Operand>
inline void Backward<T, CellOf, Operand>::norm_product(int rank, const Chunk& chunk, int64_t s) {
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

}  // namespace
}  // namespace fastrnn
