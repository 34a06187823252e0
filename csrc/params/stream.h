// A call of a stack of layers whose weights were packed once: what fastrnn._C hands to libfastrnn_cpu without the
// dispatcher between them, and what the operators hand to the same function.
#pragma once
#include "params/rows.h"

namespace fastrnn {

struct StreamCall {
  const char* const* packed = nullptr;  // of each layer and direction: a header and the pieces, as rnn_pack left them
  int64_t layers = 0;
  int directions = 1;
  Rows rows;  // full, or packed
  TensorRows x;
  const void* h0 = nullptr;  // (L*D,B,Hout), contiguous; null: zeros
  const void* c0 = nullptr;  // (L*D,B,H), LSTM
  void* y = nullptr;         // (N, D*Hout)
  void* hn = nullptr;        // (L*D,B,Hout); may be h0
  void* cn = nullptr;        // (L*D,B,H), LSTM; may be c0
};

// What libfastrnn_cpu gives away by the operator cpu_stream_entry.
struct StreamEntry {
  size_t bytes;  // of this struct and of a call: both libraries are of the same sources, or this is not used
  // Runs a call whose tensors were checked, in scratch memory (64-byte aligned) of so many bytes. Returns 0, or how
  // many bytes it needs where there are fewer, and has done nothing; -1 where the weights were packed for another
  // instruction set than the one in use.
  int64_t (*run)(const StreamCall& call, char* scratch, int64_t bytes);
};
constexpr size_t kStreamEntryBytes = sizeof(StreamEntry) * 1000 + sizeof(StreamCall);

}  // namespace fastrnn
