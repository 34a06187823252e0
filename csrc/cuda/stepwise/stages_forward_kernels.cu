// A step forward of a layer with stages; stages.h holds the contracts.
#include "cuda/stepwise/stages.cuh"

namespace fastrnn::cuda {
namespace {

// h of a unit of the output: its candidate through the state stage, and everywhere where it is read again.
template <class T>
__device__ __forceinline__ void put_output(const StageLayer& s, const StageForward& p, const RowAt& at, int64_t u,
                                           bool begins, Compute<T> h) {
  using A = Compute<T>;
  const int64_t state = at.state * s.width + u;
  A* const h_state = static_cast<A*>(p.h_state);
  if (s.on.zoneout_h) {
    const A k = keep_at<T>(s, s.masks.keep_h, at, s.width, u);
    Zoneout<ScalarMath<A>>::forward(k, begins ? A(0) : h_state[state], h);
  }
  h_state[state] = h;
  store(static_cast<T*>(p.hn) + state, h);
  if (s.masks.recurrent) store(static_cast<T*>(p.operand) + state, h * mask_at<T>(s, state));
  store(static_cast<T*>(p.y) + (at.of_direction * s.shape.D + at.direction) * s.width + u, h);
}

template <template <class> class CellOf, class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    forward_kernel(const StageLayer s, const StageForward p, const Pieces pieces) {
  using A = Compute<T>;
  using Cell = CellOf<ScalarMath<A>>;
  constexpr int G = Cell::kGates, S = Cell::kSaved;
  const RowAt at = row_at(s, p.rows, pieces);
  if (!at.exists || !s.table.runs(at.t, at.row)) return;  // all of the block
  const int d = at.direction;
  const int64_t H = s.shape.H, head_size = H / s.on.heads;
  const bool begins = s.table.begins(at.t, d, at.row), whole = !p.m;
  const int product_gates = s.on.reset_before ? G - 1 : G;
  const T* const gx = static_cast<const T*>(p.gx) + at.of_all * p.gx_stride;
  const A* const rec = static_cast<const A*>(p.rec);
  const A* const bias = p.bias ? static_cast<const A*>(p.bias) + d * (G + Cell::kSplit) * H : nullptr;
  T* const gates = p.gates ? static_cast<T*>(p.gates) + at.of_all * s.saved * H : nullptr;
  A* const held = static_cast<A*>(p.held) + at.state * 2 * H;
  const DirectionWeights& w = s.weights[d];
  const auto recurrent = [&](int64_t u, int g) {
    return begins ? A(0) : rec[by_heads(s, product_gates, at, u) + g * head_size];
  };

  RowMoments<A> of_x{}, of_h{};
  if (s.on.norm) {
    const A* const moments = static_cast<const A*>(p.x_moments) + at.of_all * 2;
    of_x = {moments[0], moments[1]};
    of_h = block_moments<G, A>(H, s.on.eps, recurrent);
  }
  for (int64_t u = at.unit; u < H; u += at.stride) {
    const int64_t state = at.state * H + u;
    A pre[G], apart = 0, saved[S], c_prev = 0, h_prev = 0, c = 0, h = 0, peephole[3] = {};
#pragma unroll
    for (int g = 0; g < G; ++g) {
      pre[g] = load(gx + g * H + u);
      A sum = g < product_gates ? recurrent(u, g) : A(0);
      if (s.on.norm) {
        if (gates) store(gates + (S + G + g) * H + u, sum);
        pre[g] = normalised(pre[g], of_x.mean, of_x.scale) * vector_at<T>(w.norm_ih, g * H + u);
        sum = normalised(sum, of_h.mean, of_h.scale) * vector_at<T>(w.norm_hh, g * H + u);
      }
      if (Cell::kSplit && g == G - 1) {
        apart = sum;
      } else {
        pre[g] += sum;
      }
      if (bias) pre[g] += bias[g * H + u];
    }
    if (Cell::kSplit && bias) apart += bias[G * H + u];
    if constexpr (Cell::kSplit) {
      if (s.on.reset_before) {
        Cell::first_phase(pre, saved);
        const A h_seen = begins ? A(0) : load(static_cast<const T*>(p.operand) + state);
        store(static_cast<T*>(p.reset_h) + state, saved[0] * h_seen);
        held[u] = saved[1];
        if (gates) {
          store(gates + u, saved[0]);
          store(gates + H + u, saved[1]);
        }
        continue;
      }
      h_prev = begins ? A(0) : static_cast<const A*>(p.h_state)[state];
    }
    if constexpr (Cell::kHasCell) c_prev = begins ? A(0) : static_cast<const A*>(p.c)[state];
    if (s.on.peephole) {
#pragma unroll
      for (int k = 0; k < 3; ++k) peephole[k] = vector_at<T>(w.peephole, k * H + u);
    }
    Cell::update(s.on, peephole, pre, apart, h_prev, c_prev, saved, c, h);
    if (gates) {
#pragma unroll
      for (int k = 0; k < S; ++k) store(gates + k * H + u, saved[k]);
    }
    if constexpr (Cell::kHasCell) {
      if (s.on.norm) {  // h waits for the sums of c
        held[u] = c;
        held[H + u] = saved[3];
      } else {
        h = Cell::emit(saved, c);
      }
      if (s.on.zoneout_c) {
        const A k = keep_at<T>(s, s.masks.keep_c, at, H, u);
        Zoneout<ScalarMath<A>>::forward(k, c_prev, c);
      }
      static_cast<A*>(p.c)[state] = c;
      if (p.cells) static_cast<A*>(p.cells)[at.of_all * H + u] = c;
      if (s.on.norm) continue;
    }
    if (whole) {
      put_output<T>(s, p, at, u, begins, h);
    } else {
      store(static_cast<T*>(p.m) + state, h);
    }
  }
  if constexpr (Cell::kHasCell) {
    if (!s.on.norm) return;
    // Every thread reads what it left itself.
    const RowMoments<A> of_c = block_moments<1, A>(H, s.on.eps, [&](int64_t u, int) { return held[u]; });
    for (int64_t u = at.unit; u < H; u += at.stride) {
      const A seen =
          normalised(held[u], of_c.mean, of_c.scale) * vector_at<T>(w.norm_c, u) + vector_at<T>(w.norm_c_bias, u);
      const A saved[4] = {0, 0, 0, held[H + u]};
      const A h = Cell::emit(saved, seen);
      if (whole) {
        put_output<T>(s, p, at, u, begins, h);
      } else {
        store(static_cast<T*>(p.m) + at.state * H + u, h);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    second_phase_kernel(const StageLayer s, const StageForward p, const Pieces pieces) {
  using A = Compute<T>;
  using Cell = GruStages<ScalarMath<A>>;
  const RowAt at = row_at(s, p.rows, pieces);
  const int64_t H = s.shape.H, u = at.unit;
  if (u >= H || !at.exists || !s.table.runs(at.t, at.row)) return;
  const int d = at.direction;
  const bool begins = s.table.begins(at.t, d, at.row);
  const A* const bias = p.bias ? static_cast<const A*>(p.bias) + d * 4 * H + 2 * H + u : nullptr;
  A pre = load(static_cast<const T*>(p.gx) + at.of_all * p.gx_stride + 2 * H + u);
  if (!begins) pre += static_cast<const A*>(p.rec_n)[by_heads(s, 1, at, u)];
  if (bias) pre += bias[0] + bias[H];
  A saved[4] = {0, static_cast<const A*>(p.held)[at.state * 2 * H + u]}, h = 0;
  const A h_prev = begins ? A(0) : static_cast<const A*>(p.h_state)[at.state * H + u];
  Cell::second_phase(pre, h_prev, saved, h);
  if (p.gates) {
    T* const gates = static_cast<T*>(p.gates) + at.of_all * s.saved * H + u;
    store(gates + 2 * H, saved[2]);
    store(gates + 3 * H, saved[3]);
  }
  put_output<T>(s, p, at, u, begins, h);
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    output_kernel(const StageLayer s, const StageForward p, const T* h, const Pieces pieces) {
  const RowAt at = row_at(s, p.rows, pieces);
  if (at.unit >= s.width || !at.exists || !s.table.runs(at.t, at.row)) return;
  put_output<T>(s, p, at, at.unit, s.table.begins(at.t, at.direction, at.row),
                load(h + at.state * s.width + at.unit));
}

template <int G, class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    input_moments_kernel(const StageLayer s, const StageForward p, Compute<T>* moments, const Pieces pieces) {
  using A = Compute<T>;
  const PieceAt at = piece_at(pieces);
  const int64_t H = s.shape.H, row = at.direction * s.shape.N + at.row;
  const T* const gx = static_cast<const T*>(p.gx) + row * p.gx_stride;
  const RowMoments<A> found =
      block_moments<G, A>(H, s.on.eps, [&](int64_t u, int g) { return load(gx + g * H + u); });
  if (threadIdx.x == 0) {
    moments[row * 2] = found.mean;
    moments[row * 2 + 1] = found.scale;
  }
}

template <class E, class T>
__global__ void __launch_bounds__(kBlock) mask_kernel(const StageLayer s, E* h, const Pieces pieces) {
  const PieceAt at = piece_at(pieces);
  if (at.unit >= s.width) return;
  const int64_t state = (at.direction * s.shape.B + at.row) * s.width + at.unit;
  store(h + state, load(h + state) * mask_at<T>(s, state));
}

}  // namespace

int stages_input_moments(const StageLayer& layer, const StageForward& step, void* moments, void* stream) {
  return with_stages(layer.shape, [&]<template <class> class Cell, class T>(CellTag<Cell>, TypeTag<T>) {
    using A = Compute<T>;
    return launch_pieces(input_moments_kernel<Cell<ScalarMath<A>>::kGates, T>, layer.shape.N, layer.shape.H, true,
                         layer.shape.D, stream, layer, step, static_cast<A*>(moments));
  });
}

int stages_forward(const StageLayer& layer, const StageForward& step, void* stream) {
  return with_stages(layer.shape, [&]<template <class> class Cell, class T>(CellTag<Cell>, TypeTag<T>) {
    return launch_pieces(forward_kernel<Cell, T>, longest(step.rows, layer.shape.D), layer.shape.H, layer.on.norm,
                         layer.shape.D, stream, layer, step);
  });
}

int stages_second_phase(const StageLayer& layer, const StageForward& step, void* stream) {
  return with_type(layer.shape.dtype, [&]<class T>(TypeTag<T>) {
    return launch_pieces(second_phase_kernel<T>, longest(step.rows, layer.shape.D), layer.shape.H, false,
                         layer.shape.D, stream, layer, step);
  });
}

int stages_output(const StageLayer& layer, const StageForward& step, const void* h, void* stream) {
  return with_type(layer.shape.dtype, [&]<class T>(TypeTag<T>) {
    return launch_pieces(output_kernel<T>, longest(step.rows, layer.shape.D), layer.width, false, layer.shape.D,
                         stream, layer, step, static_cast<const T*>(h));
  });
}

int stages_mask(const StageLayer& layer, bool compute, void* h, void* stream) {
  return with_type(layer.shape.dtype, [&]<class T>(TypeTag<T>) {
    using A = Compute<T>;
    const auto mask = [&](auto* values, auto kernel) {
      return launch_pieces(kernel, layer.shape.B, layer.width, false, layer.shape.D, stream, layer, values);
    };
    return compute ? mask(static_cast<A*>(h), mask_kernel<A, T>) : mask(static_cast<T*>(h), mask_kernel<T, T>);
  });
}

}  // namespace fastrnn::cuda
