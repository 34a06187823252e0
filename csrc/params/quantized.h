// Layers with weights of low precision, for inference: what crosses the line between the operators and the kernels.
//
// A row of a weight is stored as bfloat16, or as int8 with one scale, w = scale * q with |q| <= 127. Then the left
// operands of its products are int8 too, quantized at every step, a scale a row of the batch. Sums of int8 are exact
// in int32; states, gates and whatever else a cell computes are float32.
#pragma once
#include "params/rnn.h"

namespace fastrnn {

// How a layer's weights are stored.
enum class Storage : int { kNatural = 0, kBFloat16 = 1, kInt8 = 2 };

// Units of a block of packed weights, whatever the width of a register: so packed weights are the same everywhere.
constexpr int64_t kQuantizedBlock = 16;
// Columns that a lane of a product takes at once: 4 bytes of them.
constexpr int64_t quantized_columns(Storage storage) { return storage == Storage::kInt8 ? 4 : 2; }
// The most columns of an int8 weight: 255 * 127 a column have to fit into 32 bits (see dot.inl).
constexpr int64_t kMostInt8Columns = 65536;

struct QuantizedParams {
  LayerShape shape;  // float32; without resets
  Storage storage = Storage::kInt8;
  bool back = false;  // of one step: from the last unit to the first, as what the caches hold of the call before
  bool dot = false;   // whether the processor has the instruction for int8 products that the kernels know
  TensorRows x;
  const void* h0 = nullptr;    // (D,B,Hout); null: zeros
  const void* c0 = nullptr;    // (D,B,H), LSTM; null: zeros
  const char* packed[2] = {};  // of each direction, as QuantizedWeights lays them out
  void* y = nullptr;           // (N, D*Hout)
  void* hn = nullptr;          // (D,B,Hout); may be h0
  void* cn = nullptr;          // (D,B,H), LSTM; may be c0
};

}  // namespace fastrnn
