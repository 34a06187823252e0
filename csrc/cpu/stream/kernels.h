// The kernels of streams of one instruction set, as isa/table.h has those of the operators: one row, a few steps at a
// time, in memory that the caller keeps. They allocate nothing, take no lock and call nobody.
//
// Everything is float32. A layer is prepared once: its weights are packed into memory that lives as long as it does.
// Its state, of as many floats as `state_size` says, aligned to 64 bytes, is zeros where a stream begins. x and y are
// rows without gaps, (steps, I) and (steps, O), and do not overlap.
#pragma once
#include "cells/list.h"
#include "params/rnn.h"

namespace fastrnn {

constexpr size_t kStreamAlignment = 64;

// Activations by themselves, `a` and `b` their constants where they have some.
enum class Activation : int {
  kIdentity,
  kRelu,
  kLeakyRelu,  // a: the slope below zero
  kClamp,      // Hardtanh, ReLU6: a, b are the bounds
  kTanh,
  kSigmoid,
  kSilu,
  kElu,          // a
  kSoftsign,     // x / (1 + |x|)
  kHardSigmoid,  // clamp(x / 6 + 1 / 2, 0, 1)
};

// A layer's steps. `layer` is what it was prepared as, one of the structs below.
using StreamRun = void (*)(const void* layer, float* state, const float* x, float* y, int64_t steps);

// A recurrent layer of a plain cell, with the projection that an LSTM may have.
struct StreamRnn {
  LayerShape shape;
  const float *w_ih = nullptr, *w_hh = nullptr, *w_hr = nullptr, *bias = nullptr, *bias_rec = nullptr;
  StreamRun run = nullptr;
};

// y = W x + b.
struct StreamDense {
  int64_t I = 0, O = 0;
  const float *weight = nullptr, *bias = nullptr;
  StreamRun run = nullptr;
};

// An SRU layer: its product and its recurrence.
struct StreamScan {
  int64_t I = 0, O = 0;
  int K = 3;          // 4: the skip term has rows of the weight of its own
  bool skip = false;  // K = 3: whether x, times `scale`, is the skip term; then I = O
  bool use_tanh = false;
  float scale = 1;
  const float* weight = nullptr;    // (O*K, I), the K rows of a unit side by side
  const float* weight_c = nullptr;  // (2, O) of forget and reset gate, each row padded to whole registers
  const float* bias = nullptr;      // the same
  StreamRun run = nullptr;
};

struct StreamKernels {
  const char* name;
  bool (*runs_here)();
  // For each kind of layer: bytes of its weights as they are packed, the packing (which fills the layer's pointers
  // and its run), and floats of a stream's state.
  size_t (*rnn_bytes)(const LayerShape& shape);
  void (*prepare_rnn)(StreamRnn& layer, const DirectionWeights& weights, char* memory);
  size_t (*rnn_state)(const LayerShape& shape);
  size_t (*dense_bytes)(const StreamDense& layer);
  void (*prepare_dense)(StreamDense& layer, const float* weight, const float* bias, char* memory);
  size_t (*scan_bytes)(const StreamScan& layer);
  void (*prepare_scan)(StreamScan& layer, const float* weight, const float* weight_c, const float* bias,
                       char* memory);
  size_t (*scan_state)(const StreamScan& layer);
  void (*activate)(Activation kind, float a, float b, const float* x, float* y, int64_t count);
};

extern const StreamKernels kBaselineStream;
#if defined(__x86_64__)
extern const StreamKernels kAvx2Stream;
extern const StreamKernels kAvx512Stream;
#elif defined(__aarch64__)
extern const StreamKernels kNeonStream;
#endif

}  // namespace fastrnn
