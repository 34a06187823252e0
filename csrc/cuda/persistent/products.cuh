// The products of a step: the weights that a warp keeps in registers, and the sums it makes with them.
#pragma once
#include "kernel.cuh"

namespace fastrnn::cuda {

// `pass` forward: every gate has a sum, and all of them meet the same operand, h. Backward: each gate has an operand
// of its own, its gradient, and there is one sum. The part sums of a lane are kept apart while they form, so that
// no product waits for the one before it.
//
// The warp's tile i is tile i of K, or where K is split, tile warp + 8*i. Bounds are the same for all lanes.
template <class F, class Exchange, Pass pass, int kGates, int kTiles>
struct Products {
  static constexpr int kOperandGates = pass == Pass::kForward ? 1 : kGates;
  static constexpr int kSums = pass == Pass::kForward ? kGates : 1;
  static constexpr int kChains = kGates == 1 ? 2 : kGates;
  static constexpr int kStride = Exchange::kSplitsK ? kGridWarps : 1;
  static constexpr int kTileWords = 32 * F::kWords;
  // Tiles whose operand is read at once: from the L2 cache a read takes long, and the products of kFloat32 longer.
  static constexpr int kGroup =
      Exchange::kSplitsK && F::kPrecision != Precision::kFloat32 ? 8 / F::kWords : 4 / F::kWords;
  using Words = typename F::Words;

  uint32_t a[kTiles][kGates][F::kRegisters];

  // w (kGates*H,H), rows `stride` apart. Forward multiplies by its rows, backward by its columns. All threads of the
  // CTA call it. A tile at a time goes through the warp's part of shared memory, [warp][256]: the loads are
  // coalesced, and no addresses wait in registers while the weights fill them.
  __device__ __forceinline__ void load_weights(const typename F::Type* w, int64_t stride, int H, const Position& at,
                                               float* shared) {
    constexpr bool kForward = pass == Pass::kForward;
    float* stage = shared + at.warp * kTileUnits * kTileUnits;
    const int u_base = at.unit_tile * kTileUnits;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int k_base = (first(at) + i * kStride) * kTileUnits;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        __syncwarp();  // all lanes have read the tile before
#pragma unroll 1
        for (int e = at.lane; e < kTileUnits * kTileUnits; e += 32) {
          const int column = e & (kTileUnits - 1), row = e / kTileUnits;  // of this tile of w
          const int r = (kForward ? u_base : k_base) + row, c = (kForward ? k_base : u_base) + column;
          stage[kForward ? e : column * kTileUnits + row] =
              r < H && c < H ? load(w + (static_cast<int64_t>(gate) * H + r) * stride + c) : 0.0f;
        }
        __syncwarp();
        F::load_weights(a[i][gate], at.lane, [&](int unit, int k) { return stage[unit * kTileUnits + k]; });
        // Or the compiler keeps the halves apart, in twice the registers, and joins them again at every step.
#pragma unroll
        for (int r = 0; r < F::kRegisters; ++r) forget(a[i][gate][r]);
      }
    }
    __syncthreads();  // from here on the memory is the exchange's
  }

  static __device__ __forceinline__ int first(const Position& at) { return Exchange::kSplitsK ? at.warp : 0; }

  // The operand's words for tile `tile` of K, one gate and one tile of rows.
  static __device__ __forceinline__ const uint32_t* words(const uint32_t* operand, const Cut& cut, int row_tile,
                                                          int gate, int tile) {
    return operand + (static_cast<int64_t>(row_tile * kOperandGates + gate) * cut.unit_tiles + tile) * kTileWords;
  }

  // This warp's products for one tile of rows.
  __device__ __forceinline__ void multiply(const uint32_t* operand, int row_tile, const Position& at, const Cut& cut,
                                           float (&sums)[kSums][4]) const {
    float chains[kChains][4] = {};
#pragma unroll
    for (int operand_gate = 0; operand_gate < kOperandGates; ++operand_gate) {
#pragma unroll
      for (int group = 0; group < kTiles; group += kGroup) {
        Words b[kGroup];
#pragma unroll
        for (int i = group; i < group + kGroup && i < kTiles; ++i) {
          const int tile = first(at) + i * kStride;
          if (tile < cut.unit_tiles) {
            b[i - group] = Exchange::template read<Words>(words(operand, cut, row_tile, operand_gate, tile) +
                                                          at.lane * F::kWords);
          }
        }
#pragma unroll
        for (int i = group; i < group + kGroup && i < kTiles; ++i) {
          if (first(at) + i * kStride < cut.unit_tiles) {
#pragma unroll
            for (int gate = 0; gate < kGates; ++gate) {
              if (pass == Pass::kForward || gate == operand_gate) {
                F::multiply(chains[kGates == 1 ? i & 1 : gate], a[i][gate], b[i - group]);
              }
            }
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (kSums == kChains) {
#pragma unroll
        for (int s = 0; s < kSums; ++s) sums[s][r] = chains[s][r];
      } else {
        float sum = chains[0][r];
#pragma unroll
        for (int s = 1; s < kChains; ++s) sum += chains[s][r];
        sums[0][r] = sum;
      }
    }
  }

  // The whole sums of the tile of rows that this warp finishes. All warps of the CTA call it. Where K is split,
  // every warp multiplies its part for every tile of rows and leaves it in `parts`, [warp][row tile][sum][lane],
  // and the finishing warp adds the parts up in the order of the warps: the same bits in every run.
  __device__ __forceinline__ void sum(const uint32_t* operand, float4* parts, const Position& at, const Cut& cut,
                                      float (&sums)[kSums][4]) const {
    if constexpr (!Exchange::kSplitsK) {
      multiply(operand, 0, at, cut, sums);
    } else {
      for (int n = 0; n < cut.n_tiles; ++n) {
        multiply(operand, n, at, cut, sums);
        float4* part = parts + (at.warp * cut.n_tiles + n) * kSums * 32 + at.lane;
#pragma unroll
        for (int s = 0; s < kSums; ++s) part[s * 32] = make_float4(sums[s][0], sums[s][1], sums[s][2], sums[s][3]);
      }
      __syncthreads();  // the parts are there; and all of this CTA's reads of the operand are done
      if (!at.finishes) return;
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[s][r] = 0;
#pragma unroll 2
        for (int w = 0; w < kGridWarps; ++w) {
          const float4 v = parts[((w * cut.n_tiles + at.row_tile) * kSums + s) * 32 + at.lane];
          sums[s][0] += v.x;
          sums[s][1] += v.y;
          sums[s][2] += v.z;
          sums[s][3] += v.w;
        }
      }
    }
  }
};

}  // namespace fastrnn::cuda
