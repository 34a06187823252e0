// A call of a stack of layers whose weights were packed once: what fastrnn._C hands to libfastrnn_cpu without the
// dispatcher between them, and what the operators hand to the same function.
#pragma once
#include "params/rows.h"

namespace fastrnn {

struct StreamCall {
  const char* const* packed = nullptr;  // of each layer and direction: a header and the pieces, as rnn_pack left them
  int64_t layers = 0;
  int directions = 1;
  bool back = false;  // whether units are run from the last to the first, by turns with the call before
  Rows rows;          // full, or packed; of streams of which some run, those, of one step
  TensorRows x;
  const void* h0 = nullptr;  // (L*D,B,Hout), contiguous; null: zeros
  const void* c0 = nullptr;  // (L*D,B,H), LSTM
  void* y = nullptr;         // (N, D*Hout)
  void* hn = nullptr;        // (L*D,B,Hout); may be h0
  void* cn = nullptr;        // (L*D,B,H), LSTM; may be c0
  // A batch of streams of which some run, in one direction. The states above have a row for each stream, and only
  // rows that run are read and written; 0: all run.
  int64_t streams = 0;
  const uint8_t* mask = nullptr;   // (streams): nonzero where one runs, rows.B of them
  const int64_t* which = nullptr;  // or (rows.B): the stream of each row
  bool all = false;                // whether x and y have a row for each stream as well; `which` ascends then
};

// What libfastrnn_cpu gives away by the operator cpu_stream_entry.
struct StreamEntry {
  size_t bytes;  // of this struct and of a call: both libraries are of the same sources, or this is not used
  // Runs a call whose tensors were checked, in scratch memory (64-byte aligned) of so many bytes. Returns 0, or how
  // many bytes it needs where there are fewer, and has done nothing; -1 where the weights were packed for another
  // instruction set than the one in use; -2 where `which` has no row, or twice the same, or not the order it needs.
  int64_t (*run)(const StreamCall& call, char* scratch, int64_t bytes);
};
constexpr size_t kStreamEntryBytes = sizeof(StreamEntry) * 1000 + sizeof(StreamCall);

}  // namespace fastrnn
