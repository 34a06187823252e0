// The forward kernel's biases: both parts' sum, in shared memory; and what the cell's functions are of, with them.
#pragma once
#include "cuda/persistent/kernel.cuh"

namespace fastrnn::cuda {

// This thread's of the CTA's units, `cta_units` from `cta_unit` on, a tile of which has a warp at least: read with
// everything else that the first step needs of memory, and added up when it is there.
template <class Cell, class T>
struct Biases {
  static constexpr int G = Cell::kGates, Gr = G + Cell::kSplit, kBiases = (Gr + 1) / 2;
  T of_input[kBiases] = {}, of_recurrence[kBiases] = {};

  __device__ __forceinline__ Biases(const PersistentForward& p, int d, int cta_unit, int cta_units) {
    const int64_t H = p.shape.H;
    if (p.b_ih[d]) {
#pragma unroll
      for (int n = 0; n < kBiases; ++n) {
        const int i = static_cast<int>(threadIdx.x + n * blockDim.x), gate = i / cta_units;
        const int64_t unit = cta_unit + (i - gate * cta_units);
        // Of a GRU's last gate the recurrent part's bias is apart, behind the others.
        const bool there = gate < Gr && unit < H, split = Cell::kSplit && gate >= G - 1;
        if (there && gate < G) of_input[n] = static_cast<const T*>(p.b_ih[d])[gate * H + unit];
        if (there && (!split || gate == G)) {
          of_recurrence[n] = static_cast<const T*>(p.b_hh[d])[(split ? G - 1 : gate) * H + unit];
        }
      }
    }
  }
  // Into [Gr][units of the CTA]; the exchange's first barrier comes before their use.
  __device__ __forceinline__ void add_up(float* bias, int cta_units) const {
#pragma unroll
    for (int n = 0; n < kBiases; ++n) {
      const int i = static_cast<int>(threadIdx.x + n * blockDim.x);
      if (i < Gr * cta_units) bias[i] = load(&of_input[n]) + load(&of_recurrence[n]);
    }
  }
};

// What the cell's functions are of, for a lane's row j and unit u: `pre` of every gate, and the recurrent part of a
// GRU's last one apart. sums: of the products, unit r/2 of row r%2; bias: the lane's pair of gate 0, those of the
// others `units` further on each.
template <class Cell, class T>
__device__ __forceinline__ void before_functions(const float (&sums)[Cell::kGates][4],
                                                 const Pair<T> (&gx)[Cell::kGates][2], const float* bias, int units,
                                                 int j, int u, float (&pre)[Cell::kGates], float& rec) {
  constexpr int G = Cell::kGates;
#pragma unroll
  for (int gate = 0; gate < G; ++gate) {
    const float sum = sums[gate][2 * u + j];
    pre[gate] = gx[gate][j][u] + bias[gate * units + u];
    if (Cell::kSplit && gate == G - 1) {
      rec = sum + bias[G * units + u];
    } else {
      pre[gate] += sum;
    }
  }
}

}  // namespace fastrnn::cuda
