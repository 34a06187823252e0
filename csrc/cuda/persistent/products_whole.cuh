// The products of a step of one CTA where all its tiles are whole, in place of Products::sum: the same sums, bit by
// bit, in an order in which no product waits for another one.
#pragma once
#include "cuda/persistent/products.cuh"

namespace fastrnn::cuda {

// Of all tiles of K, one after the other, each with all its gates: so many chains of products are on their way.
// Backward, where every gate has an operand of its own, gate after gate would be one chain. There is a first tile, so
// that a step does not ask for it nor begin with zeros.
template <class F, Pass pass, int kGates, int kTiles, class P>
__device__ __forceinline__ void sum_whole_tiles(const P& products, const uint32_t* operand, const Cut& cut, int lane,
                                                float (&sums)[P::kSums][4]) {
  using Words = typename F::Words;
  constexpr int kChains = P::kChains;
  // Tiles whose operand is read at once: as many as there are registers beside the weights.
  constexpr int kRoom = kTiles * kGates * F::kRegisters > 128 ? 8 : 16, kAll = F::kWords * P::kOperandGates;
  constexpr int kTogether = kRoom < kAll ? 1 : kRoom / kAll;
  static_assert(kTogether % 2 == 0 || kGates > 1);
  const auto there = [tiles = cut.unit_tiles](int i) { return i == 0 || i < tiles; };
  const uint32_t* of_gate[P::kOperandGates];
#pragma unroll
  for (int gate = 0; gate < P::kOperandGates; ++gate) {
    of_gate[gate] = operand + P::offset(cut, 0, gate, 0) + lane * F::kWords;
  }
  float chains[kChains][4] = {};
#pragma unroll
  for (int first = 0; first < kTiles; first += kTogether) {
    Words b[kTogether][P::kOperandGates];
#pragma unroll
    for (int n = 0; n < kTogether && first + n < kTiles; ++n) {
      if (there(first + n)) {
#pragma unroll
        for (int gate = 0; gate < P::kOperandGates; ++gate) {
          b[n][gate] = *reinterpret_cast<const Words*>(of_gate[gate] + (first + n) * P::kTileWords);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTogether && first + n < kTiles; ++n) {
      if (there(first + n)) {
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          F::multiply(chains[kGates == 1 ? n & 1 : gate], products.a[first + n][gate],
                      b[n][pass == Pass::kForward ? 0 : gate]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (P::kSums == kChains) {
#pragma unroll
      for (int s = 0; s < P::kSums; ++s) sums[s][r] = chains[s][r];
    } else {
      float sum = chains[0][r];
#pragma unroll
      for (int s = 1; s < kChains; ++s) sum += chains[s][r];
      sums[0][r] = sum;
    }
  }
}

}  // namespace fastrnn::cuda
