// The weights of one direction, quantized and packed. Blocks of 16 units, whatever the instruction set, so that a
// file of them runs everywhere; c columns of 4 bytes together (4 int8, 2 bfloat16), which is what an instruction for
// int8 products multiplies and adds in a lane:
//     w_ih, w_hh  [block][ceil(K/c)][G][16][c], element = weight[g*H + 16*block + unit][c*k + i]
//     w_hr        the same with G = 1 and units of the output, projection only
//     scale_*     [block][G][16], of int8
//     offset_*    [block][G][16], of int8: -128 times the sum of the row (see dot.inl)
//     bias        [block][G][16], what the input projection starts from
//     bias_rec    [block][16], what a split gate's recurrent part starts from
// Units and columns beyond the last are zero.
#pragma once
#include "params/quantized.h"

namespace fastrnn {
namespace {

// One matrix of them.
struct QuantizedMatrix {
  char* data = nullptr;
  float* scale = nullptr;
  int32_t* offset = nullptr;
};

struct QuantizedWeights {
  QuantizedMatrix w_ih, w_hh, w_hr;
  float* bias = nullptr;
  float* bias_rec = nullptr;

  static constexpr int64_t blocks_of(int64_t units) { return (units + kQuantizedBlock - 1) / kQuantizedBlock; }
  // Groups of columns of a row.
  static constexpr int64_t groups_of(int64_t K, Storage storage) {
    return (K + quantized_columns(storage) - 1) / quantized_columns(storage);
  }
  // Bytes of a block of units with G gates.
  static constexpr int64_t block_bytes(int64_t K, int G, Storage storage) {
    return groups_of(K, storage) * G * kQuantizedBlock * 4;
  }

  // Points the pieces into `packed`, and returns how many bytes they are. With packed null it only measures. G and
  // split: the cell's, which kernels know beforehand.
  size_t lay_out(char* packed, const LayerShape& s, Storage storage, int G, bool split) {
    size_t used = 0;
    const auto take = [&]<class T>(T*& piece, int64_t bytes) {
      piece = packed ? reinterpret_cast<T*>(packed + used) : nullptr;
      used += (static_cast<size_t>(bytes) + 63) / 64 * 64;
    };
    const auto matrix = [&](QuantizedMatrix& m, int64_t units, int64_t K, int gates) {
      const int64_t blocks = blocks_of(units),
                    rows = storage == Storage::kInt8 ? blocks * gates * kQuantizedBlock : 0;
      take(m.data, blocks * block_bytes(K, gates, storage));
      take(m.scale, rows * 4);
      take(m.offset, rows * 4);
    };
    matrix(w_ih, s.H, s.I, G);
    matrix(w_hh, s.H, s.out_size(), G);
    if (s.P) matrix(w_hr, s.P, s.H, 1);
    take(bias, blocks_of(s.H) * G * kQuantizedBlock * 4);
    take(bias_rec, split ? blocks_of(s.H) * kQuantizedBlock * 4 : 0);
    return used;
  }
  // Points into what was packed before. Nothing is written there.
  void read(const char* packed, const LayerShape& s, Storage storage, int G, bool split) {
    lay_out(const_cast<char*>(packed), s, storage, G, split);
  }
};

}  // namespace
}  // namespace fastrnn
