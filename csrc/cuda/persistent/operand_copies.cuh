// The grid tier's way of an operand from the L2 cache to the products: copies into shared memory, by which no
// register waits for it.
//
// A warp copies the tiles that it multiplies, a piece after the other: a piece is what belongs to one tile of rows
// and one operand (forward: h; backward: a gate's gradient). All of a piece is on its way at once, and
// cut.copies_ahead pieces are, so that the L2 cache answers once and not once for every few tiles that there are
// registers for. A warp's copies are its own, so that it waits for nobody: [warp][place][tile][lane][kWords], the
// words of a tile as they lie in the operand.
#pragma once
#include "cuda/device/async_copy.cuh"
#include "cuda/persistent/kernel.cuh"

namespace fastrnn::cuda {

template <class F, int kTiles, int kStride>
struct OperandCopies {
  static constexpr int kTileWords = 32 * F::kWords;
  static constexpr int kLanes = kTileWords / 4, kTilesAtOnce = 32 / kLanes;  // that copy a tile, 16 bytes each

  const Cut& cut;
  const Position& at;
  const int tile;  // this lane's first one of a piece, of the warp's, and its words there
  const int word;
  const int place_words;
  uint32_t* const places;         // this warp's
  const uint32_t* from;           // what this lane copies of the next piece to ask for,
  int left;                       // of so many
  int ask_in = 0, take_from = 0;  // words from the places' begin

  // In shared memory from `rest` + cut.copies_offset on.
  __device__ __forceinline__ OperandCopies(const uint32_t* operand, int operand_gates, uint32_t* rest,
                                           const Position& at, const Cut& cut)
      : cut(cut),
        at(at),
        tile(at.lane / kLanes),
        word(at.lane % kLanes * 4),
        place_words(part_tiles(cut.unit_tiles, kGridWarps) * kTileWords),
        places(rest + cut.copies_offset + at.warp * cut.copies_ahead * place_words),
        from(operand + (at.first + tile * kStride) * kTileWords + word),
        left(cut.n_tiles * operand_gates) {
#pragma unroll 1
    for (int ahead = 0; ahead < cut.copies_ahead; ++ahead) ask();
  }

  // A group of copies, whether a piece is left or not: take() counts groups.
  __device__ __forceinline__ void ask() {
    if (left > 0) {
      uint32_t* const to = places + ask_in + tile * kTileWords + word;
      const int first = at.first + tile * kStride;
      const auto copy = [&](int i) {
        if (first + i * kStride < at.end) copy_exchanged(to + i * kTileWords, from + i * kStride * kTileWords);
      };
#pragma unroll
      for (int i = 0; i < kTiles; i += kTilesAtOnce) copy(i);
      // Of the weights that have no registers.
      constexpr int kBehind = (kTiles + kTilesAtOnce - 1) / kTilesAtOnce * kTilesAtOnce;
#pragma unroll 1
      for (int i = kBehind; at.first + i * kStride < at.end; i += kTilesAtOnce) copy(i);
      from += cut.tile_slots * kTileWords;
      --left;
    }
    commit_copies();
    ask_in = next(ask_in);
  }
  // The next piece: this lane's words of the warp's first tile in it.
  __device__ __forceinline__ const uint32_t* take() {
    if (cut.copies_ahead == 4) {
      wait_copies<3>();
    } else if (cut.copies_ahead == 2) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncwarp();  // every lane's part of it is there
    return places + take_from + at.lane * F::kWords;
  }
  // The warp is through with it.
  __device__ __forceinline__ void drop() {
    take_from = next(take_from);
    __syncwarp();  // no lane reads it any more: the products waited for all, but do not order accesses
    ask();
  }
  __device__ __forceinline__ int next(int place) const {
    return place + place_words == cut.copies_ahead * place_words ? 0 : place + place_words;
  }
};

}  // namespace fastrnn::cuda
