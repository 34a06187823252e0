// The products of a step: the weights that a warp keeps in registers, and the sums it makes with them.
#pragma once
#include "cuda/persistent/kernel.cuh"
#include "cuda/persistent/operand_copies.cuh"
#include "cuda/persistent/weights.cuh"

namespace fastrnn::cuda {

// `pass` forward: every gate has a sum, and all of them meet the same operand, h. Backward: each gate has an operand
// of its own, its gradient, and there is one sum. The part sums of a lane are kept apart while they form, so that
// no product waits for the one before it.
//
// The warp's tile i is tile at.first + i * Exchange::kStride of K, below at.end: the same for all lanes. Tiles beyond
// kTiles, which one CTA does not have, are kept in shared memory, [tile][gate][a register's four][lane][4].
//
// In the grid a warp multiplies copies of its tiles of the operand: operand_copies.cuh.
template <class F, class Exchange, Pass pass, int kGates, int kTiles>
struct Products {
  static constexpr int kOperandGates = pass == Pass::kForward ? 1 : kGates;
  static constexpr int kSums = pass == Pass::kForward ? kGates : 1;
  static constexpr int kChains = kGates == 1 ? 2 : kGates;
  static constexpr int kStride = Exchange::kStride;
  static constexpr int kTileWords = 32 * F::kWords;
  // Tiles whose operand is read at once.
  static constexpr int kGroup = 4 / F::kWords;
  // Tiles of the grid's weights in shared memory that are read at once: kFloat32's products have registers for one.
  static constexpr int kKeptTogether = F::kPrecision == Precision::kFloat32 ? 1 : 2;
  using Words = typename F::Words;

  static constexpr int kKeptWords = kGates * F::kRegisters * 32;  // of a tile

  uint32_t a[kTiles][kGates][F::kRegisters] = {};
  uint32_t* kept;  // this lane's words of the warp's tiles in shared memory

  // All gates of one tile.
  template <int kAtOnce>
  static __device__ __forceinline__ void load_tile(const TiledWeights<F, pass>& weights,
                                                   uint32_t (&words)[kGates][F::kRegisters], const Position& at,
                                                   int tile, int H, int k_end) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      weights.template load<kAtOnce>(words[gate], gate, at.unit_tile, tile, H, k_end);
    }
  }
  static __device__ __forceinline__ void arrange(uint32_t (&words)[kGates][F::kRegisters]) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) TiledWeights<F, pass>::arrange(words[gate]);
  }

  // w (kGates*H,H), rows `stride` apart. Forward multiplies by its rows, backward by its columns. The loads for the
  // registers are in flight all at once, those for shared memory as many as there are registers, so that memory
  // answers once for the former and once a chunk for the latter.
  __device__ __forceinline__ void load_weights(const typename F::Type* w, int64_t stride, int H, const Position& at,
                                               const Cut& cut, uint32_t* shared) {
    const TiledWeights<F, pass> weights = {w, stride, H, at.lane};
    const int k_end = H < at.end * kTileUnits ? H : at.end * kTileUnits;
    with_elements_at_once<TiledWeights<F, pass>>(cut.weights_at_once, [&]<int kAtOnce>() {
      constexpr bool kWhole = kAtOnce * sizeof(typename F::Type) >= 4;  // registers arrive whole
      if constexpr (Exchange::kKeepsInShared) {
        const int tiles = kept_tiles(cut.unit_tiles, at.split, kTiles);
        // Where the first tiles of units have a warp more, its warps keep fewer.
        const int before = cut.k_more * (cut.k_split + 1),
                  fewer = kept_tiles(cut.unit_tiles, cut.k_split + 1, kTiles);
        const int kept_before = at.warp < before ? at.warp * tiles : before * fewer + (at.warp - before) * tiles;
        kept = shared + cut.kept_offset + kept_before * kKeptWords + at.lane * 4;
        // As many tiles at once as there are free registers, until those for the step come.
        constexpr int kRoom = (kWhole ? 96 : 48) / (kGates * F::kRegisters), kChunk = kRoom < 8 ? kRoom : 8;
#pragma unroll 1
        for (int first = 0; first < tiles; first += kChunk) {
          uint32_t words[kChunk][kGates][F::kRegisters];
#pragma unroll
          for (int i = 0; i < kChunk; ++i) {
            load_tile<kAtOnce>(weights, words[i], at, at.first + (kTiles + first + i) * kStride, H, k_end);
          }
#pragma unroll
          for (int i = 0; i < kChunk; ++i) {
            arrange(words[i]);
#pragma unroll
            for (int n = 0; n < kGates * F::kRegisters; n += 4) {
              const uint32_t* four = &words[i][n / F::kRegisters][n % F::kRegisters];
              if (first + i < tiles) {
                *reinterpret_cast<uint4*>(kept + (first + i) * kKeptWords + n * 32) =
                    make_uint4(four[0], four[1], four[2], four[3]);
              }
            }
          }
        }
      }
      if constexpr (kWhole) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) load_tile<kAtOnce>(weights, a[i], at, at.first + i * kStride, H, k_end);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) arrange(a[i]);
      } else {
        // Halves take whole registers on their way, and there is no room for all: a tile at a time.
#pragma unroll 1
        for (int tile = 0; tile < kTiles; ++tile) {
          uint32_t words[kGates][F::kRegisters];
          load_tile<kAtOnce>(weights, words, at, at.first + tile * kStride, H, k_end);
          arrange(words);
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
#pragma unroll
            for (int gate = 0; gate < kGates; ++gate) {
#pragma unroll
              for (int r = 0; r < F::kRegisters; ++r) a[i][gate][r] = i == tile ? words[gate][r] : a[i][gate][r];
            }
          }
        }
      }
    });
  }

  // Where in an operand the words for tile `tile` of K, one gate and one tile of rows begin.
  static __device__ __forceinline__ int64_t offset(const Cut& cut, int row_tile, int gate, int tile) {
    return (static_cast<int64_t>(row_tile * kOperandGates + gate) * cut.tile_slots + tile) * kTileWords;
  }

  using Chains = float[kChains][4];

  // This warp's products for one tile of rows, by the weights in registers: those that meet one operand, whose words
  // for this lane and the warp's first tile are at `first`, those of its tiles so many words apart,
  template <int kDistance>
  __device__ __forceinline__ void multiply_operand(const uint32_t* first, int operand_gate, const Position& at,
                                                   Chains& chains) const {
#pragma unroll
    for (int group = 0; group < kTiles; group += kGroup) {
      Words b[kGroup];
#pragma unroll
      for (int i = group; i < group + kGroup && i < kTiles; ++i) {
        if (at.first + i * kStride < at.end) b[i - group] = words_at(first + i * kDistance);
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
  // all of them,
  __device__ __forceinline__ void multiply_registers(const uint32_t* operand, int row_tile, const Position& at,
                                                     const Cut& cut, Chains& chains) const {
#pragma unroll
    for (int operand_gate = 0; operand_gate < kOperandGates; ++operand_gate) {
      // From here on the tiles' distances are constants: an address each would take two registers.
      const uint32_t* const first = operand + offset(cut, row_tile, operand_gate, at.first) + at.lane * F::kWords;
      multiply_operand<kStride * kTileWords>(first, operand_gate, at, chains);
    }
  }
  // and by those in shared memory.
  __device__ __forceinline__ void multiply_kept(const uint32_t* operand, int row_tile, const Position& at,
                                                const Cut& cut, Chains& chains) const {
#pragma unroll 1
    for (int tile = at.first + kTiles; tile < at.end; ++tile) {
      const uint32_t* weights = kept + (tile - at.first - kTiles) * kKeptWords;
      Words b = {};
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        if (gate < kOperandGates) {
          b = words_at(operand + offset(cut, row_tile, gate, tile) + at.lane * F::kWords);
        }
        multiply_kept_gate(weights, gate, b, chains);
      }
    }
  }
  static __device__ __forceinline__ void multiply_kept_gate(const uint32_t* weights, int gate, const Words& b,
                                                            Chains& chains) {
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
  static __device__ __forceinline__ Words words_at(const uint32_t* shared) {
    return *reinterpret_cast<const Words*>(shared);
  }

  using Copies = OperandCopies<F, kTiles, kStride>;

  // The products with the copies of one tile of rows.
  __device__ __forceinline__ void multiply_copies(Copies& copies, const Position& at, const Cut& cut,
                                                  Chains& chains) const {
    // As many in shared memory for every warp, and by a shuffle, so that the compiler, too, knows that all lanes come
    // to the products together. Where a warp has no more they are zeros by zeros.
    const int tiles = __shfl_sync(0xffffffffu, kept_tiles(cut.unit_tiles, kGridWarps, kTiles), 0);
#pragma unroll
    for (int operand_gate = 0; operand_gate < kOperandGates; ++operand_gate) {
      const uint32_t* const first = copies.take();
      multiply_operand<kTileWords>(first, operand_gate, at, chains);
      const uint32_t* weights = kept;
      const uint32_t* words = first + kTiles * kTileWords;
#pragma unroll kKeptTogether
      for (int i = 0; i < tiles; ++i) {
        Words b = {};
        if (at.first + (kTiles + i) * kStride < at.end) b = words_at(words);
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          if (pass == Pass::kForward || gate == operand_gate) multiply_kept_gate(weights, gate, b, chains);
        }
        weights += kKeptWords;
        words += kTileWords;
      }
      copies.drop();
    }
  }

  // This warp's products for one tile of rows.
  __device__ __forceinline__ void multiply(const uint32_t* operand, Copies* copies, int row_tile, const Position& at,
                                           const Cut& cut, float poison, float (&sums)[kSums][4]) const {
    Chains chains;
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
#pragma unroll
      for (int r = 0; r < 4; ++r) chains[chain][r] = poison;
    }
    if constexpr (Exchange::kCopies) {
      multiply_copies(*copies, at, cut, chains);
    } else if constexpr (!Exchange::kKeepsInShared) {
      multiply_registers(operand, row_tile, at, cut, chains);
    } else {
      // One of the two warps that a scheduler has begins with shared memory, so that the one's reads and the other's
      // products take the same time.
      const int shared_first = at.warp >> 2 & 1;
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        if (half == shared_first) {
          multiply_registers(operand, row_tile, at, cut, chains);
        } else {
          multiply_kept(operand, row_tile, at, cut, chains);
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

  // The parts of `split` warps from `first` on, `stride` apart, added in the order of the warps. A read of shared
  // memory takes about 30 cycles, and longer with its four lines of a warp's float4: those of several warps and of
  // all gates are on their way together, as many as parts_together says.
  static __device__ __forceinline__ void add_parts(const float4* parts, int stride, int first, int split,
                                                   float (&sums)[kSums][4]) {
    constexpr int kWarps = parts_together(kSums);
    // All warps of a grid's CTA share K.
    constexpr bool kEven = Exchange::kTier == Tier::kGrid && kGridWarps % kWarps == 0;
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sums[s][r] = 0;
    }
    parts += first * stride;
    const int rounds = kEven ? kGridWarps / kWarps : (split + kWarps - 1) / kWarps;
#pragma unroll 1
    for (int round = 0; round < rounds; ++round, parts += kWarps * stride) {
      const auto there = [&](int w) { return kEven || round * kWarps + w < split; };
      float4 v[kWarps][kSums];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        // In place of a part that is not there the round's first, which is not added again.
        const float4* const part = there(w) ? parts + w * stride : parts;
#pragma unroll
        for (int s = 0; s < kSums; ++s) v[w][s] = part[s * 32];
      }
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (there(w)) {
#pragma unroll
          for (int s = 0; s < kSums; ++s) {
            sums[s][0] += v[w][s].x;
            sums[s][1] += v[w][s].y;
            sums[s][2] += v[w][s].z;
            sums[s][3] += v[w][s].w;
          }
        }
      }
    }
  }

  // The whole sums of the tile of rows that this warp finishes. All warps of the CTA call it. Where K is split,
  // every warp multiplies its part for every tile of rows and leaves it in `parts`, [warp][row tile][sum][lane],
  // and the finishing warp adds up the parts of its tile of units in the order of the warps: the same bits in every
  // run. All sums begin with `poison`: 0, or NaN where there is no operand. `rest`: shared memory behind the biases.
  __device__ __forceinline__ void sum(const uint32_t* operand, uint32_t* rest, float4* parts, const Position& at,
                                      const Cut& cut, float poison, float (&sums)[kSums][4]) const {
    if constexpr (Exchange::kCopies) {
      Copies copies(operand, kOperandGates, rest, at, cut);
      sum_of_parts(operand, &copies, parts, at, cut, poison, sums);
    } else if constexpr (Exchange::kSplitsK) {
      sum_of_parts(operand, nullptr, parts, at, cut, poison, sums);
    } else {
      multiply(operand, nullptr, 0, at, cut, poison, sums);
    }
  }
  __device__ __forceinline__ void sum_of_parts(const uint32_t* operand, Copies* copies, float4* parts,
                                               const Position& at, const Cut& cut, float poison,
                                               float (&sums)[kSums][4]) const {
    for (int n = 0; n < cut.n_tiles; ++n) {
      multiply(operand, copies, n, at, cut, poison, sums);
      // And there is one tile of rows; no other warp of the CTA waits below, as all tiles are then split alike.
      if (Exchange::kTier == Tier::kCluster && at.split == 1) return;
      float4* part = parts + (at.warp * cut.n_tiles + n) * kSums * 32 + at.lane;
#pragma unroll
      for (int s = 0; s < kSums; ++s) part[s * 32] = make_float4(sums[s][0], sums[s][1], sums[s][2], sums[s][3]);
    }
    __syncthreads();  // the parts are there; and all of this CTA's reads of the operand are done
    if (!at.finishes) return;
    add_parts(parts + at.row_tile * kSums * 32 + at.lane, cut.n_tiles * kSums * 32, at.warp - at.row_tile, at.split,
              sums);
  }
};

}  // namespace fastrnn::cuda
