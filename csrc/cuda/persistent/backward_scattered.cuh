// The gradient of h through the recurrent product where a cluster's CTAs scatter parts of it.
//
// A CTA holds the rows of the weights that belong to its own units, of all gates, so the gates' gradient that its
// finishing warps compute never leaves it: they write it to their own shared memory, a __syncthreads, and every warp
// multiplies it for its share of all outputs, H of them. Each 16 of these sums go to the CTA that has those units,
// straight from the lane that has them to the lane that wants them, and are added up there in the order of the
// senders: the same bits in every run. A CTA receives for 8 rows and a step 32*H bytes, whatever the cell and type:
// half of what gathering an LSTM's gates in half types would take, in pushes that all warps share.
//
// tests/protocols/scattered.pml is this exchange as a model; what it does not cover: kernel.cuh.
#pragma once
#include "cuda/persistent/products.cuh"

namespace fastrnn::cuda {

// Publication i lies in two places, each of which has two buffers, i in number i%2:
//   the operand  the gates' gradient of the CTA's own tiles, [row tile][own tile][gate][lane][kWords]
//   the slots    the parts of its sums from all peers, [own tile][row tile][sender][lane][4 floats]
// Peers push into the slots, and the bytes count themselves in at a barrier (mbarrier) of the buffer. Nothing else
// orders the CTAs.
//
// Why publication i+1 may overwrite i-1 in a CTA's slots. Who pushes a part of i+1 does so behind the __syncthreads
// of its CTA's publish(i+1), which its finishing warps enter when they have seen all of i arrive there, so also what
// this CTA pushed of i. And this CTA pushed that behind the __syncthreads of its own publish(i), which its finishing
// warps enter when they have read i-1. So every CTA pushes to every peer, itself included and in the same way: each
// has a tile of units or more, and each multiplies for all of them. For the same reason the barrier expects i+1
// before a byte of it arrives.
//
// Why publication i+1 may overwrite i-1 in its operand. Finishing warps write i+1 behind the __syncthreads of
// publish(i), which every warp enters when it is through with its products of i-1. One buffer would not do: a
// finishing warp knows from take(i) that i's parts have arrived here, not that all warps are through with all others.
template <class F, int kGates, int kGroups>
struct ScatteredProduct {
  using T = typename F::Type;
  using Words = typename F::Words;
  using Weights = TiledWeights<F, Pass::kBackward>;
  static constexpr int kTileWords = 32 * F::kWords;
  static constexpr int kOutputs = kOutputsTogether;
  static constexpr int kChains = 2;  // sums of an output that form apart: no product waits for the one before it
  static constexpr int kSlotBytes = 32 * 16;
  static constexpr int kKeptWords = kGates * kOutputs * F::kRegisters * 32;  // of a group
  struct Group {
    uint32_t words[kGates][kOutputs][F::kRegisters];
  };
  using Sums = float[kOutputs][kChains][4];

  const Cut& cut;
  uint32_t* rest;
  ClusterBarriers barriers;
  int rank;       // of the CTA
  int own_tiles;  // of units
  Group a[kGroups] = {};
  uint32_t* kept;  // this lane's words of the warp's groups beyond those

  __device__ __forceinline__ ScatteredProduct(const Cut& cut, uint32_t* shared, const Position& at)
      : cut(cut), rest(shared + front_words(0, 0)), barriers{cut, shared, 0} {
    rank = static_cast<int>(blockIdx.x) - at.replica * cut.ctas_per_replica;
    own_tiles = own_tiles_of(at, cut);
    barriers.bytes = static_cast<uint32_t>(cut.peers * own_tiles * cut.n_tiles) * kSlotBytes;
  }

  // Fewer in the last CTA that has any, none behind it.
  static __device__ __forceinline__ int own_tiles_of(const Position& at, const Cut& cut) {
    const int left = cut.unit_tiles - at.cta_tile;
    return left < 0 ? 0 : left < cut.cta_tiles ? left : cut.cta_tiles;
  }
  static __device__ __forceinline__ int warps() { return static_cast<int>(blockDim.x) / 32; }

  // Finishing warps come first, one a tile of units and rows.
  static __device__ __forceinline__ Position place(const LayerShape& shape, const Cut& cut) {
    Position at = Position::of<Cluster>(shape, cut);
    at.finishes = at.unit_tile < at.cta_tile + own_tiles_of(at, cut);
    return at;
  }

  // Where outputs go: the warp's are number 2*warp and the next, then those 2*warps() on. They count from the first
  // tile of the peer behind this CTA: not all CTAs push into the same one at once.
  __device__ __forceinline__ int output_tile(int number) const {
    const int tile = number + (rank + 1 < cut.peers ? rank + 1 : 0) * cut.cta_tiles;
    return tile < cut.unit_tiles ? tile : tile - cut.unit_tiles;
  }

  // w (kGates*H,H), rows `stride` apart. As many loads in flight at once as there are registers: Products.
  __device__ __forceinline__ void load_weights(const T* w, int64_t stride, int H, const Position& at) {
    if (own_tiles == 0) return;
    const Weights weights = {w, stride, H, at.lane};
    const int groups = groups_of(cut.unit_tiles, own_tiles, warps(), at.warp);
    with_elements_at_once<Weights>(cut.weights_at_once, [&]<int kAtOnce>() {
      constexpr bool kWhole = kAtOnce * sizeof(T) >= 4;  // registers arrive whole
      const int before = kept_groups(cut.unit_tiles, own_tiles, warps(), kGroups, at.warp);
      kept = rest + cut.kept_offset + before * kKeptWords + at.lane * 4;
      constexpr int kRoom = (kWhole ? 96 : 48) / (kGates * kOutputs * F::kRegisters);
      constexpr int kChunk = kRoom < 1 ? 1 : kRoom < 8 ? kRoom : 8;
#pragma unroll 1
      for (int from = kGroups; from < groups; from += kChunk) {
        Group words[kChunk];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) load_group<kAtOnce>(weights, words[i], from + i, at);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          arrange(words[i]);
          uint32_t* to = kept + (from + i - kGroups) * kKeptWords;
          if (from + i < groups) {
            for_fours(words[i], [&](const uint32_t* four, int offset) {
              *reinterpret_cast<uint4*>(to + offset) = make_uint4(four[0], four[1], four[2], four[3]);
            });
          }
        }
      }
      if constexpr (kWhole) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) load_group<kAtOnce>(weights, a[group], group, at);
#pragma unroll
        for (int group = 0; group < kGroups; ++group) arrange(a[group]);
      } else {
        // Halves take whole registers on their way, and there is no room for all: a group at a time.
#pragma unroll 1
        for (int group = 0; group < kGroups; ++group) {
          Group words = {};
          load_group<kAtOnce>(weights, words, group, at);
          arrange(words);
#pragma unroll
          for (int i = 0; i < kGroups; ++i) {
            if (i == group) a[i] = words;
          }
        }
      }
    });
  }
  // Zero where the warp has no such group, and where an odd number of outputs leaves a pair with one.
  template <int kAtOnce>
  __device__ __forceinline__ void load_group(const Weights& weights, Group& group, int number,
                                             const Position& at) const {
    const int first = kOutputs * (at.warp + number / own_tiles * warps()), own_tile = number % own_tiles;
    const int H = static_cast<int>(weights.rows);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const int tile = first + o < cut.unit_tiles ? output_tile(first + o) : cut.unit_tiles;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        weights.template load<kAtOnce>(group.words[gate][o], gate, tile, at.cta_tile + own_tile, H, H);
      }
    }
  }
  static __device__ __forceinline__ void arrange(Group& group) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) Weights::arrange(group.words[gate][o]);
    }
  }
  // f(a register, its offset in a lane's words in shared memory) of every fourth register of a group.
  template <class AGroup, class Body>
  static __device__ __forceinline__ void for_fours(AGroup& group, Body f) {
#pragma unroll
    for (int n = 0; n < kGates * kOutputs * F::kRegisters; n += 4) {
      f(&group.words[n / F::kRegisters / kOutputs][n / F::kRegisters % kOutputs][n % F::kRegisters], n * 32);
    }
  }

  // False for a CTA without units, which has nothing to do.
  __device__ __forceinline__ bool begin(int n) {
    barriers.begin(n, own_tiles > 0);
    return own_tiles > 0;
  }
  __device__ __forceinline__ void end() { barriers.end(); }
  __device__ __forceinline__ float poison() const { return barriers.poison; }

  __device__ __forceinline__ uint32_t* slots(int i) const { return rest + (i & 1) * cut.slot_words; }
  // Bytes from the slots' begin to a lane's.
  __device__ __forceinline__ int slot(int own_tile, int row_tile, int sender, int lane) const {
    return ((own_tile * cut.n_tiles + row_tile) * cut.peers + sender) * kSlotBytes + lane * 16;
  }
  __device__ __forceinline__ uint32_t* operand(int i) const {
    return rest + 2 * cut.slot_words + (i & 1) * static_cast<int>(cut.operand_words);
  }
  __device__ __forceinline__ int offset(int row_tile, int own_tile) const {
    return (row_tile * cut.cta_tiles + own_tile) * kGates * kTileWords;
  }

  __device__ __forceinline__ void take(int i, const Position& at, float (&through)[4]) {
    if (!at.finishes) return;
    barriers.wait(i);
    const uint32_t* parts = slots(i) + slot(at.unit_tile - at.cta_tile, at.row_tile, 0, at.lane) / 4;
#pragma unroll
    for (int r = 0; r < 4; ++r) through[r] = barriers.poison;
#pragma unroll 4
    for (int sender = 0; sender < cut.peers; ++sender) {
      const float4 part = *reinterpret_cast<const float4*>(parts + sender * (kSlotBytes / 4));
      through[0] += part.x;
      through[1] += part.y;
      through[2] += part.z;
      through[3] += part.w;
    }
  }

  __device__ __forceinline__ void write(int i, int gate, const Position& at, const Pair<T> (&rows)[2]) {
    const int tile = offset(at.row_tile, at.unit_tile - at.cta_tile) + gate * kTileWords;
    F::write(operand(i) + tile, at.lane, rows);
  }

  // The products of what was written, and their way to the peers. Not from a CTA that gave up waiting, of which only
  // the finishing warps know: the barrier tells the others, or they would push on without end.
  __device__ __forceinline__ void publish(int i, const Position& at) {
    __syncthreads();  // all of the CTA's tiles of i are there
    const bool pushes = !flag_is_raised(barriers.failure());
    for (int row_tile = 0; row_tile < cut.n_tiles; ++row_tile) {
      const uint32_t* b = operand(i) + offset(row_tile, 0) + at.lane * F::kWords;
      const uint32_t here = shared_address(slots(i)) + slot(0, row_tile, rank, at.lane), bar = barriers.address(i);
      int first = kOutputs * at.warp, own_tile = 0;
      Sums sums = {};
      const auto next = [&] {
        b += kGates * kTileWords;
        if (++own_tile == own_tiles) {
          push_outputs(here, bar, first, pushes, sums);
          b -= own_tiles * kGates * kTileWords;
          own_tile = 0;
          first += kOutputs * warps();
        }
      };
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (first < cut.unit_tiles) {
          multiply(sums, a[group], b, group);
          next();
        }
      }
#pragma unroll 1
      for (const uint32_t* from = kept; first < cut.unit_tiles; from += kKeptWords) {
        Group weights;
        for_fours(weights, [&](uint32_t* four, int offset) {
          const uint4 v = *reinterpret_cast<const uint4*>(from + offset);
          four[0] = v.x, four[1] = v.y, four[2] = v.z, four[3] = v.w;
        });
        multiply(sums, weights, b, 0);
        next();
      }
    }
  }

  // One group: both outputs meet the same operand. `chain`: of the first gate.
  static __device__ __forceinline__ void multiply(Sums& sums, const Group& group, const uint32_t* operand,
                                                  int chain) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      const Words b = *reinterpret_cast<const Words*>(operand + gate * kTileWords);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) F::multiply(sums[o][(chain + gate) & 1], group.words[gate][o], b);
    }
  }

  // Both outputs' sums to the CTAs that have their units; they begin again at zero. `here`: this lane's slot, as if
  // the outputs' tiles were all in one CTA.
  __device__ __forceinline__ void push_outputs(uint32_t here, uint32_t bar, int first, bool pushes,
                                               Sums& sums) const {
    const int tile_bytes = cut.n_tiles * cut.peers * kSlotBytes;
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      if (pushes && (o == 0 || first + o < cut.unit_tiles)) {
        const int tile = output_tile(first + o), owner = tile * cut.owner_factor >> 16;
        const uint32_t to = here + (tile - owner * cut.cta_tiles) * tile_bytes;
        const auto sum = [&](int r) { return __float_as_uint(sums[o][0][r] + sums[o][1][r]); };
        const uint4 words = make_uint4(sum(0), sum(1), sum(2), sum(3));
        push(peer_address(to, owner), words, peer_address(bar, owner));
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) sums[o][0][r] = sums[o][1][r] = 0;
    }
  }
};

}  // namespace fastrnn::cuda
