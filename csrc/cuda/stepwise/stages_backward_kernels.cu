// A step back of a layer with stages; stages.h holds the contracts.
#include "cuda/stepwise/stages.cuh"

namespace fastrnn::cuda {
namespace {

// What reaches a unit of the output: its candidate's gradient, and what goes to h_{t-1} past the cell.
template <class T>
__device__ __forceinline__ Compute<T> output_gradient(const StageLayer& s, const StageBackward& p, const RowAt& at,
                                                      int64_t u, Compute<T>& kept) {
  using A = Compute<T>;
  const int64_t state = at.state * s.width + u;
  A dh = 0;
  if (!s.table.ends(at.t, at.direction, at.row)) {
    dh = static_cast<const A*>(p.dh)[state] * mask_at<T>(s, state) + static_cast<const A*>(p.direct)[state];
  }
  if (p.grad_y) {
    dh += load(static_cast<const T*>(p.grad_y) + (at.of_direction * s.shape.D + at.direction) * s.width + u);
  }
  kept = 0;
  if (s.on.zoneout_h) {
    const A k = keep_at<T>(s, s.masks.keep_h, at, s.width, u);
    Zoneout<ScalarMath<A>>::backward(k, dh, kept);
  }
  return dh;
}

// h_{t-1} of a unit as the cell read it, 0 where the step begins a sequence.
template <class T>
__device__ __forceinline__ Compute<T> previous_output(const StageLayer& s, const StageBackward& p, const RowAt& at,
                                                      int64_t u) {
  const int d = at.direction;
  if (s.table.begins(at.t, d, at.row)) return 0;
  const int64_t before = pick(p.previous.first, d) + at.row;
  return s.table.runs(pick(p.previous.t, d), at.row)
             ? load(static_cast<const T*>(p.y) + (before * s.shape.D + d) * s.width + u)
             : load(static_cast<const T*>(p.h0) + at.state * s.width + u);
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    output_gradient_kernel(const StageLayer s, const StageBackward p, const Pieces pieces) {
  using A = Compute<T>;
  const RowAt at = row_at(s, p.rows, pieces);
  const int64_t u = at.unit, state = at.state * s.width + u;
  if (u >= s.width || !at.exists) return;
  A* const direct = static_cast<A*>(p.direct) + state;
  if (!s.table.runs(at.t, at.row)) {
    *direct += static_cast<const A*>(p.dh)[state] * mask_at<T>(s, state);
    return;
  }
  A kept;
  const A dh = output_gradient<T>(s, p, at, u, kept);
  *direct = kept;
  store(static_cast<T*>(p.dh_y) + at.of_all * s.width + u, dh);
}

template <template <class> class CellOf, class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    backward_kernel(const StageLayer s, const StageBackward p, const Pieces pieces) {
  using A = Compute<T>;
  using Cell = CellOf<ScalarMath<A>>;
  constexpr int G = Cell::kGates, S = Cell::kSaved;
  const RowAt at = row_at(s, p.rows, pieces);
  if (!at.exists) return;  // all of the block
  const int d = at.direction;
  const int64_t H = s.shape.H, t = at.t, row = at.row, head_size = H / s.on.heads;
  const int64_t first = at.state * H;  // of the (D,B,H) buffers
  const bool projected = p.dm;
  A* const direct = projected ? nullptr : static_cast<A*>(p.direct) + first;
  T* const operand = static_cast<T*>(p.operand);
  T* const operand_n = static_cast<T*>(p.operand_n);
  const int product_gates = s.on.reset_before ? G - 1 : G;
  // The recurrent gates' gradient as the product reads it.
  const auto put_operand = [&](int64_t u, int g, A value) {
    if (g < product_gates) {
      store(operand + by_heads(s, product_gates, at, u) + g * head_size, value);
    } else {
      store(operand_n + by_heads(s, 1, at, u), value);
    }
  };
  if (!s.table.runs(t, row)) {  // its gradients wait, and the products give it none
    for (int64_t u = at.unit; u < H; u += at.stride) {
      if (direct) direct[u] += static_cast<const A*>(p.dh)[first + u] * mask_at<T>(s, first + u);
      for (int g = 0; g < G; ++g) put_operand(u, g, 0);
    }
    return;
  }
  const bool begins = s.table.begins(t, d, row), ends = s.table.ends(t, d, row);
  const int64_t before = pick(p.previous.first, d) + row;
  const bool has_previous = s.table.runs(pick(p.previous.t, d), row);
  const T* const gates = static_cast<const T*>(p.gates) + at.of_all * s.saved * H;
  T* const dgx = static_cast<T*>(p.dgx) + at.of_all * G * H;
  T* const dgh = static_cast<T*>(p.dgh) + at.of_all * G * H;
  A* const held = static_cast<A*>(p.held) + 2 * first;
  A* const terms = p.terms ? static_cast<A*>(p.terms) + at.of_all * p.at.count * H : nullptr;
  const DirectionWeights& w = s.weights[d];
  const auto saved_at = [&](int64_t u, int k) { return load(gates + k * H + u); };
  const auto c_before = [&](int64_t u) {
    if (begins) return A(0);
    return has_previous ? static_cast<const A*>(p.cells)[(d * s.shape.N + before) * H + u]
                        : load(static_cast<const T*>(p.c0) + first + u);
  };
  // The candidate of c: c itself where nothing of the old one stays.
  const auto candidate = [&](int64_t u) {
    if constexpr (Cell::kHasCell) {
      if (s.on.zoneout_c) {
        const A saved[3] = {saved_at(u, 0), saved_at(u, 1), saved_at(u, 2)};
        return Cell::candidate(saved, c_before(u));
      }
      return static_cast<const A*>(p.cells)[at.of_all * H + u];
    }
    return A(0);
  };
  const auto candidate_gradient = [&](int64_t u, A& kept) {
    return projected ? static_cast<const A*>(p.dm)[first + u] : output_gradient<T>(s, p, at, u, kept);
  };
  const bool apart = s.on.norm && Cell::kHasCell;  // h sees a c that was normalised

  RowMoments<A> of_h{}, of_c{};
  A c_sums[2] = {}, h_sums[2] = {};  // means of the gradient e of what was normalised, of e times that
  if (s.on.norm) of_h = block_moments<G, A>(H, s.on.eps, [&](int64_t u, int g) { return saved_at(u, S + G + g); });
  if constexpr (Cell::kHasCell) {
    if (apart) {
      of_c = block_moments<1, A>(H, s.on.eps, [&](int64_t u, int) { return candidate(u); });
      for (int64_t u = at.unit; u < H; u += at.stride) {
        A kept = 0, dpre[4], d_seen;
        const A gain = vector_at<T>(w.norm_c, u), normal = normalised(candidate(u), of_c.mean, of_c.scale);
        const A seen = normal * gain + vector_at<T>(w.norm_c_bias, u);
        const A saved[4] = {0, 0, 0, saved_at(u, 3)};
        const A dh = candidate_gradient(u, kept);
        Cell::emit_backward(saved, seen, dh, dpre, d_seen);
        if (direct) direct[u] = kept;
        if (p.m) store(static_cast<T*>(p.m) + at.of_all * H + u, Cell::emit(saved, seen));
        if (terms) {
          terms[p.at.norm_c * H + u] = d_seen * normal;
          terms[(p.at.norm_c + 1) * H + u] = d_seen;
        }
        held[u] = dpre[3];
        held[H + u] = d_seen * gain;
        c_sums[0] += d_seen * gain;
        c_sums[1] += d_seen * gain * normal;
      }
      block_sums(c_sums);
      for (A& sum : c_sums) sum /= static_cast<A>(H);
    }
  }
  for (int64_t u = at.unit; u < H; u += at.stride) {
    A saved[S], peephole[3] = {}, dpre[G], drec = 0, c_prev = 0, c = 0, h_prev = 0, dh = 0, kept = 0, dc = 0,
                dc_kept = 0, dc_prev = 0, dh_prev = 0;
#pragma unroll
    for (int k = 0; k < S; ++k) saved[k] = saved_at(u, k);
    if (s.on.peephole) {
#pragma unroll
      for (int k = 0; k < 3; ++k) peephole[k] = vector_at<T>(w.peephole, k * H + u);
    }
    if (!apart) dh = candidate_gradient(u, kept);
    if constexpr (Cell::kHasCell) {
      c = candidate(u);
      c_prev = c_before(u);
      if (!ends) dc = static_cast<const A*>(p.dc)[first + u];
      if (p.grad_cells) dc += static_cast<const A*>(p.grad_cells)[at.of_all * H + u];
      if (s.on.zoneout_c) {
        const A k = keep_at<T>(s, s.masks.keep_c, at, H, u);
        Zoneout<ScalarMath<A>>::backward(k, dc, dc_kept);
      }
      A d_seen;
      if (apart) {
        dpre[3] = held[u];
        d_seen = norm_backward(held[H + u], normalised(c, of_c.mean, of_c.scale), of_c.scale, c_sums[0], c_sums[1]);
      } else {
        Cell::emit_backward(saved, c, dh, dpre, d_seen);
        if (p.m) store(static_cast<T*>(p.m) + at.of_all * H + u, Cell::emit(saved, c));
      }
      dc += d_seen;
    }
    if constexpr (Cell::kSplit) {
      h_prev = previous_output<T>(s, p, at, u);
      if (s.on.reset_before) {
        Cell::second_phase_backward(saved, h_prev, dh, dpre, drec, dh_prev);
        dpre[0] = 0;  // the first phase finds it
      } else {
        Cell::update_backward(s.on, peephole, saved, c_prev, h_prev, dh, dc, dpre, drec, dc_prev, dh_prev);
      }
    } else {
      Cell::update_backward(s.on, peephole, saved, c_prev, h_prev, dh, dc, dpre, drec, dc_prev, dh_prev);
    }
    if constexpr (Cell::kHasCell) {
      if (s.on.peephole && terms) {
        terms[p.at.peephole * H + u] = dpre[0] * c_prev;
        terms[(p.at.peephole + 1) * H + u] = dpre[1] * c_prev;
        terms[(p.at.peephole + 2) * H + u] = dpre[3] * c;
      }
      static_cast<A*>(p.dc)[first + u] = dc_prev + dc_kept;
    }
    if (direct && !apart) direct[u] = dh_prev + kept;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      A of_state = Cell::kSplit && g == G - 1 ? drec : dpre[g];
      store(dgx + g * H + u, dpre[g]);
      if (s.on.norm) {
        const A normal = normalised(saved_at(u, S + G + g), of_h.mean, of_h.scale);
        if (terms) terms[(p.at.norm_hh + g) * H + u] = of_state * normal;
        of_state *= vector_at<T>(w.norm_hh, g * H + u);
        h_sums[0] += of_state;
        h_sums[1] += of_state * normal;
      } else {
        put_operand(u, g, of_state);
      }
      if (p.dgh != p.dgx) store(dgh + g * H + u, of_state);
    }
    if (Cell::kSplit && terms && s.on.norm) terms[p.at.bias_n * H + u] = drec;
  }
  if (!s.on.norm) return;
  block_sums(h_sums);
  for (A& sum : h_sums) sum /= static_cast<A>(H * G);
  for (int64_t u = at.unit; u < H; u += at.stride) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const A normal = normalised(saved_at(u, S + G + g), of_h.mean, of_h.scale);
      const A value = norm_backward(load(dgh + g * H + u), normal, of_h.scale, h_sums[0], h_sums[1]);
      store(dgh + g * H + u, value);
      put_operand(u, g, value);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    first_phase_kernel(const StageLayer s, const StageBackward p, const Pieces pieces) {
  using A = Compute<T>;
  using Cell = GruStages<ScalarMath<A>>;
  const RowAt at = row_at(s, p.rows, pieces);
  const int64_t H = s.shape.H, u = at.unit, state = at.state * H + u;
  if (u >= H || !at.exists || !s.table.runs(at.t, at.row)) return;
  const A saved[1] = {load(static_cast<const T*>(p.gates) + at.of_all * s.saved * H + u)};
  const A mask = mask_at<T>(s, state), h = previous_output<T>(s, p, at, u) * mask;
  A dpre[1], dh;
  Cell::first_phase_backward(saved, h, static_cast<const A*>(p.d_reset_h)[state], dpre, dh);
  store(static_cast<T*>(p.dgx) + at.of_all * 3 * H + u, dpre[0]);
  store(static_cast<T*>(p.dgh) + at.of_all * 3 * H + u, dpre[0]);
  store(static_cast<T*>(p.operand) + by_heads(s, 2, at, u), dpre[0]);
  static_cast<A*>(p.direct)[state] += mask * dh;
}

template <template <class> class CellOf, class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    input_backward_kernel(const StageLayer s, const StageBackward p, const Pieces pieces) {
  using A = Compute<T>;
  using Cell = CellOf<ScalarMath<A>>;
  constexpr int G = Cell::kGates, S = Cell::kSaved;
  const PieceAt at = piece_at(pieces);
  const int64_t H = s.shape.H, of_n = at.direction * s.shape.N + at.row;
  const bool padded = !s.table.row_offsets;
  if (padded && !s.table.runs(at.row / s.table.B, at.row % s.table.B)) return;  // all of the block
  const T* const x = static_cast<const T*>(p.gates) + (of_n * s.saved + S) * H;
  T* const dgx = static_cast<T*>(p.dgx) + of_n * G * H;
  A* const terms = p.terms ? static_cast<A*>(p.terms) + (of_n * p.at.count + p.at.norm_ih) * H : nullptr;
  const void* const gain = s.weights[at.direction].norm_ih;
  const RowMoments<A> of_x = block_moments<G, A>(H, s.on.eps, [&](int64_t u, int g) { return load(x + g * H + u); });
  A sums[2] = {};
  for (int64_t u = at.unit; u < H; u += at.stride) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const A normal = normalised(load(x + g * H + u), of_x.mean, of_x.scale), dpre = load(dgx + g * H + u);
      const A e = dpre * vector_at<T>(gain, g * H + u);
      if (terms) terms[g * H + u] = dpre * normal;
      sums[0] += e;
      sums[1] += e * normal;
    }
  }
  block_sums(sums);
  for (A& sum : sums) sum /= static_cast<A>(H * G);
  for (int64_t u = at.unit; u < H; u += at.stride) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const A normal = normalised(load(x + g * H + u), of_x.mean, of_x.scale);
      const A e = load(dgx + g * H + u) * vector_at<T>(gain, g * H + u);
      store(dgx + g * H + u, norm_backward(e, normal, of_x.scale, sums[0], sums[1]));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    operands_kernel(const StageLayer s, const StageBackward p, T* out, T* reset_out, const Pieces pieces) {
  const PieceAt at = piece_at(pieces);
  const RowTable& table = s.table;
  const int64_t d = at.direction, t = at.row / table.B, b = at.row - t * table.B, u = at.unit;
  if (u >= s.width) return;
  const bool runs = table.runs(t, b);
  if (!runs && table.row_offsets) return;
  const int64_t of_n = d * s.shape.N + (runs ? table.row(t, b) : at.row), to = of_n * s.width + u;
  Compute<T> h = 0, reset = 0;
  if (runs && !table.begins(t, at.direction, b)) {
    const int64_t before = d ? t + 1 : t - 1, state = (d * table.B + b) * s.width + u;
    h = table.runs(before, b)
            ? load(static_cast<const T*>(p.y) + (table.row(before, b) * s.shape.D + d) * s.width + u)
            : load(static_cast<const T*>(p.h0) + state);
    h *= mask_at<T>(s, state);
    if (reset_out) reset = load(static_cast<const T*>(p.gates) + of_n * s.saved * s.width + u) * h;
  }
  store(out + to, h);
  if (reset_out) store(reset_out + to, reset);
}

}  // namespace

int stages_output_gradient(const StageLayer& layer, const StageBackward& step, void* stream) {
  return with_type(layer.shape.dtype, [&]<class T>(TypeTag<T>) {
    return launch_pieces(output_gradient_kernel<T>, longest(step.rows, layer.shape.D), layer.width, false,
                         layer.shape.D, stream, layer, step);
  });
}

int stages_backward(const StageLayer& layer, const StageBackward& step, void* stream) {
  return with_stages(layer.shape, [&]<template <class> class Cell, class T>(CellTag<Cell>, TypeTag<T>) {
    return launch_pieces(backward_kernel<Cell, T>, longest(step.rows, layer.shape.D), layer.shape.H, layer.on.norm,
                         layer.shape.D, stream, layer, step);
  });
}

int stages_first_phase_backward(const StageLayer& layer, const StageBackward& step, void* stream) {
  return with_type(layer.shape.dtype, [&]<class T>(TypeTag<T>) {
    return launch_pieces(first_phase_kernel<T>, longest(step.rows, layer.shape.D), layer.shape.H, false,
                         layer.shape.D, stream, layer, step);
  });
}

int stages_input_backward(const StageLayer& layer, const StageBackward& step, void* stream) {
  return with_stages(layer.shape, [&]<template <class> class Cell, class T>(CellTag<Cell>, TypeTag<T>) {
    return launch_pieces(input_backward_kernel<Cell, T>, layer.shape.N, layer.shape.H, true, layer.shape.D, stream,
                         layer, step);
  });
}

int stages_operands(const StageLayer& layer, const StageBackward& step, void* h, void* reset_h, void* stream) {
  const int64_t rows = layer.table.row_offsets ? layer.table.T * layer.table.B : layer.shape.N;
  return with_type(layer.shape.dtype, [&]<class T>(TypeTag<T>) {
    return launch_pieces(operands_kernel<T>, rows, layer.width, false, layer.shape.D, stream, layer, step,
                         static_cast<T*>(h), static_cast<T*>(reset_h));
  });
}

}  // namespace fastrnn::cuda
