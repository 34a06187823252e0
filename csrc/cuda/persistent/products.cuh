// The products of a step: the weights that a warp keeps in registers, and the sums it makes with them.
#pragma once
#include "kernel.cuh"

namespace fastrnn::cuda {

// `pass` forward: every gate has a sum, and all of them meet the same operand, h. Backward: each gate has an operand
// of its own, its gradient, and there is one sum. The part sums of a lane are kept apart while they form, so that
// no product waits for the one before it.
//
// The warp's tile i is tile at.first + i * Exchange::kStride of K, below at.end: the same for all lanes. Tiles beyond
// kTiles, which only a cluster has, are kept in shared memory, [tile][gate][a register's four][lane][4].
template <class F, class Exchange, Pass pass, int kGates, int kTiles>
struct Products {
  static constexpr int kOperandGates = pass == Pass::kForward ? 1 : kGates;
  static constexpr int kSums = pass == Pass::kForward ? kGates : 1;
  static constexpr int kChains = kGates == 1 ? 2 : kGates;
  static constexpr int kStride = Exchange::kStride;
  static constexpr int kTileWords = 32 * F::kWords;
  // Tiles whose operand is read at once: from the L2 cache a read takes long, and the products of kFloat32 longer.
  static constexpr int kGroup =
      Exchange::kTier == Tier::kGrid && F::kPrecision != Precision::kFloat32 ? 8 / F::kWords : 4 / F::kWords;
  using Words = typename F::Words;

  static constexpr int kKeptWords = kGates * F::kRegisters * 32;  // of a tile

  uint32_t a[kTiles][kGates][F::kRegisters];
  uint32_t* kept;  // this lane's words of the warp's tiles in shared memory

  // w (kGates*H,H), rows `stride` apart. Forward multiplies by its rows, backward by its columns. All threads of the
  // CTA call it. A tile at a time goes through the warp's part of shared memory, [warp][256]: the loads are
  // coalesced, and no addresses wait in registers while the weights fill them.
  __device__ __forceinline__ void load_weights(const typename F::Type* w, int64_t stride, int H, const Position& at,
                                               const Cut& cut, float* shared) {
    float* stage = shared + at.warp * kTileUnits * kTileUnits;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        stage_tile(w + static_cast<int64_t>(gate) * H * stride, stride, H, at, at.first + i * kStride, stage);
        F::load_weights(a[i][gate], at.lane, [&](int unit, int k) { return stage[unit * kTileUnits + k]; });
        // Or the compiler keeps the halves apart, in twice the registers, and joins them again at every step.
#pragma unroll
        for (int r = 0; r < F::kRegisters; ++r) forget(a[i][gate][r]);
      }
    }
    if constexpr (Exchange::kKeepsInShared) {
      const int tiles = cut.k_tiles > kTiles ? cut.k_tiles - kTiles : 0;
      kept = reinterpret_cast<uint32_t*>(shared) + cut.kept_offset + at.warp * tiles * kKeptWords + at.lane * 4;
#pragma unroll 1
      for (int i = 0; i < tiles; ++i) {
#pragma unroll 1
        for (int gate = 0; gate < kGates; ++gate) {
          stage_tile(w + static_cast<int64_t>(gate) * H * stride, stride, H, at, at.first + kTiles + i, stage);
          uint32_t words[F::kRegisters];
          F::load_weights(words, at.lane, [&](int unit, int k) { return stage[unit * kTileUnits + k]; });
          uint32_t* to = kept + (i * kGates + gate) * F::kRegisters * 32;
#pragma unroll
          for (int r = 0; r < F::kRegisters; ++r) to[r / 4 * 128 + r % 4] = words[r];
        }
      }
    }
    __syncthreads();  // from here on the memory is the exchange's
  }

  // One gate's tile of w for the warp's units and tile `k_tile` of K to `stage`, [unit][k], by all lanes.
  static __device__ __forceinline__ void stage_tile(const typename F::Type* w, int64_t stride, int H,
                                                    const Position& at, int k_tile, float* stage) {
    constexpr bool kForward = pass == Pass::kForward;
    const int u_base = at.unit_tile * kTileUnits, k_base = k_tile * kTileUnits;
    __syncwarp();  // all lanes have read the tile before
#pragma unroll 1
    for (int e = at.lane; e < kTileUnits * kTileUnits; e += 32) {
      const int column = e & (kTileUnits - 1), row = e / kTileUnits;  // of this tile of w
      const int r = (kForward ? u_base : k_base) + row, c = (kForward ? k_base : u_base) + column;
      stage[kForward ? e : column * kTileUnits + row] =
          r < H && c < H ? load(w + static_cast<int64_t>(r) * stride + c) : 0.0f;
    }
    __syncwarp();
  }

  // Where in an operand the words for tile `tile` of K, one gate and one tile of rows begin.
  static __device__ __forceinline__ int64_t offset(const Cut& cut, int row_tile, int gate, int tile) {
    return (static_cast<int64_t>(row_tile * kOperandGates + gate) * cut.tile_slots + tile) * kTileWords;
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
          const int tile = at.first + i * kStride;
          if (tile < at.end) {
            b[i - group] = Exchange::template read<Words>(operand + offset(cut, row_tile, operand_gate, tile) +
                                                          at.lane * F::kWords);
          }
        }
#pragma unroll
        for (int i = group; i < group + kGroup && i < kTiles; ++i) {
          if (at.first + i * kStride < at.end) {
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
    if constexpr (Exchange::kKeepsInShared) {
#pragma unroll 1
      for (int tile = at.first + kTiles; tile < at.end; ++tile) {
        const uint32_t* weights = kept + (tile - at.first - kTiles) * kKeptWords;
        Words b = {};
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          if (gate < kOperandGates) {
            b = Exchange::template read<Words>(operand + offset(cut, row_tile, gate, tile) + at.lane * F::kWords);
          }
          uint32_t w[F::kRegisters];
#pragma unroll
          for (int r = 0; r < F::kRegisters; r += 4) {
            const uint4 four = *reinterpret_cast<const uint4*>(weights + (gate * F::kRegisters + r) * 32);
            w[r] = four.x;
            w[r + 1] = four.y;
            w[r + 2] = four.z;
            w[r + 3] = four.w;
          }
          F::multiply(chains[gate], w, b);
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
  // and the finishing warp adds up the parts of its tile of units in the order of the warps: the same bits in every
  // run.
  __device__ __forceinline__ void sum(const uint32_t* operand, float4* parts, const Position& at, const Cut& cut,
                                      float (&sums)[kSums][4]) const {
    if constexpr (!Exchange::kSplitsK) {
      multiply(operand, 0, at, cut, sums);
    } else {
      const int split = Exchange::k_split(cut);
      for (int n = 0; n < cut.n_tiles; ++n) {
        multiply(operand, n, at, cut, sums);
        if (Exchange::kTier == Tier::kCluster && split == 1) return;  // and there is one tile of rows
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
        for (int w = at.warp - at.row_tile; w < at.warp - at.row_tile + split; ++w) {
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
