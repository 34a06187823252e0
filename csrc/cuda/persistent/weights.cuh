// Weights on their way from memory to the lanes that multiply by them: straight into registers, so that all of a
// warp's loads are in flight together and the first step waits for memory once, not once a tile.
//
// That works without a detour through shared memory because a lane's part of a tile, 8 weights, is a block of its
// matrix (fragments.cuh orders units and K so): where w is multiplied by its rows, 4 neighbouring k of two units;
// where by its columns (backward), two neighbouring units of 4 k. A load takes a whole row of the block, and the
// lanes together whole sectors of 32 bytes.
#pragma once
#include "cuda/persistent/fragments.cuh"

namespace fastrnn::cuda {

// A matrix of `rows` rows a gate, `stride` elements apart, as tiles of 16 units by 16 k.
template <class F, Pass pass>
struct TiledWeights {
  using T = typename F::Type;
  static constexpr bool kByRows = pass == Pass::kForward;  // its rows are the units
  // Of a lane's block.
  static constexpr int kRows = kByRows ? 2 : 4, kColumns = kByRows ? 4 : 2;
  static constexpr int kRowWords = kColumns * sizeof(T) / 4;

  const T* w;
  int64_t stride, rows;
  int lane;

  // This lane's block of one tile, as it lies in memory: arrange() makes A's registers of it. Zero where no unit
  // below `units` or no k below `k_end` is. kAtOnce elements a load: see elements_at_once() in launch.cuh.
  template <int kAtOnce>
  __device__ __forceinline__ void load(uint32_t (&words)[F::kRegisters], int gate, int unit_tile, int k_tile,
                                       int units, int k_end) const {
    const int unit = unit_tile * kTileUnits + 2 * (lane >> 2), k = k_tile * kTileUnits + 4 * (lane & 3);
    const int row = kByRows ? unit : k, column = kByRows ? k : unit;
    const int row_end = kByRows ? units : k_end, column_end = kByRows ? k_end : units;
    const T* block = w + (gate * rows + row) * stride + column;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kColumns; i += kAtOnce) {
        const bool there = row + r < row_end && column + i < column_end;
        load_some<kAtOnce>(words + r * kRowWords, i, block + r * stride + i, there);
      }
    }
  }

  // Apart from the loads, so that many are in flight before the first is waited for.
  static __device__ __forceinline__ void arrange(uint32_t (&words)[F::kRegisters]) {
    F::template arrange<!kByRows>(words);
    // Or the compiler arranges them again at every use.
#pragma unroll
    for (int r = 0; r < F::kRegisters; ++r) forget(words[r]);
  }

 private:
  // Elements i to i + kAtOnce - 1 of `words`.
  template <int kAtOnce>
  static __device__ __forceinline__ void load_some(uint32_t* words, int i, const T* from, bool there) {
    constexpr int kBytes = kAtOnce * sizeof(T);
    uint32_t* to = words + i * static_cast<int>(sizeof(T)) / 4;
    if constexpr (kBytes == 16) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if (there) v = load_vector(reinterpret_cast<const uint4*>(from));
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else if constexpr (kBytes == 8) {
      uint2 v = make_uint2(0, 0);
      if (there) v = load_vector(reinterpret_cast<const uint2*>(from));
      to[0] = v.x, to[1] = v.y;
    } else if constexpr (kBytes == 4) {
      to[0] = there ? load_vector(reinterpret_cast<const uint32_t*>(from)) : 0;
    } else {
      const uint32_t half = there ? *reinterpret_cast<const uint16_t*>(from) : 0;
      to[0] = i % 2 ? to[0] | half << 16 : half;
    }
  }
};

// f<n>(), n a constant: `at_once` elements a load, which is 4, 2 or 1, or the most that a block's row has.
template <class Weights, class Body>
__device__ __forceinline__ void with_elements_at_once(int at_once, Body f) {
  if (at_once >= Weights::kColumns) {
    f.template operator()<Weights::kColumns>();
  } else if (Weights::kColumns > 2 && at_once == 2) {
    f.template operator()<2>();
  } else {
    f.template operator()<1>();
  }
}

}  // namespace fastrnn::cuda
