// The persistent tiers: a whole layer, all steps and both directions, in one launch. The recurrent weights are
// read once, into registers and, where those are too few, into shared memory, and stay there; what moves from step to
// step is h (backward: the gates' gradient).
//
//   one CTA   a CTA holds all recurrent weights of a direction and takes 8 rows of the batch through all
//             steps; nothing leaves the SM but results. H to 128 for half types.
//   cluster   a replica is a thread block cluster of 4, 8 or 16 CTAs, which hold the weights of a direction
//             together and push into each other's shared memory what every step makes: forward its h, backward
//             parts of the gradient of h. From compute capability 9.0 on; not for kFloat32. What the registers
//             cannot hold of the weights waits in shared memory.
//   grid      a replica of H/16 CTAs, one an SM, holds the weights of a direction, 16 units each, and takes up
//             to 64 rows; its CTAs meet once a step at a flag in the L2 cache. What the registers cannot hold of
//             the weights waits in shared memory, beside the parts of the sums and the copies of the operand, so
//             that there is room for fewer rows then. Directions and further rows are further replicas. Needs a
//             cooperative launch.
//
// No torch and no CUDA header here. "T" after a shape is the layer's type, letters as in params/rnn.h and
// stepwise/kernels.h (Gr = gates + 1 for a GRU, else gates; S = values saved a unit).
#pragma once
#include <cstdint>

#include "params/rnn.h"
#include "plan/geometry.h"

namespace fastrnn::cuda {

// Both passes. Every pointer is device memory, aligned to its elements; strides count elements and may be odd.
//
// Rows of different lengths: batch row b runs at the steps t < lengths[b], 0 to T, in both directions; `lengths` (B)
// is device int64, null where all run T steps. Packed sequences have row_offsets (T+1) too, LayerShape's but on the
// device (the kernels do not look at the host pointers in `shape`, the launch takes N from them): row b of step t is
// row_offsets[t] + b. Without them it is t*B + b, and rows beyond their length are neither read nor written.
//
// resets (T,B) is nonzero where the state of a row does not pass between the steps t-1 and t, in either direction:
// a new sequence begins there with a state of zero, forward at step 0 too. Not with packed sequences.
//
// Grid tier: the launch zeroes the flags in `workspace` itself; a workspace may be reused by the next call on the
// same stream. Results are the same bits in every run.
//
// No wait for other CTAs is endless. A signal that does not come within wait_ticks (which only a bug, broken hardware
// or a debugger brings about) ends like this: whoever waited gives up for good, writes the device's Status
// (cuda/device/status.h), and goes on with NaN in place of all sums, without waiting again. Everything that its
// replica computes from that step on (y, saved gates, dgates, hn, cn, dh0, dc0) is NaN, but for gradients that relu's
// zero slope makes zero; rows that end before it, and other replicas, have their right values. The launch ends, and
// what comes after it on the stream runs: nobody need synchronise to be safe.
//
// Who gives up publishes nothing any more, as what nobody waits for would count as something else later. It says so
// to its peers, so that they give up too, and not a limit later each. Grid: by a bit of the replica's flag, and the
// first int of the workspace becomes 1 (0: no wait gave up). Cluster: by a word in the shared memory of every peer,
// which those look at that have waited for a while; nothing is on its way when the cluster's last barrier is met.
struct PersistentForward {
  LayerShape shape;
  Precision precision = Precision::kFloat32;
  const int64_t* row_offsets = nullptr;
  const int64_t* lengths = nullptr;
  const uint8_t* resets = nullptr;

  // Where x is null gx is read. Else the kernel fills gx from x and w_ih before its first step: I up to
  // kMaxProjected. What it costs beside the launch that is saved: projects() in plan/cuda.cpp.
  void* gx = nullptr;                        // (D,N,G*H) T: x W_ih^T, no bias; directions N*gx_stride apart
  int64_t gx_stride = 0;                     // from row to row; >= G*H
  const void* x = nullptr;                   // (N,I) T, or null
  const void* w_ih[2] = {nullptr, nullptr};  // (G*H,I) T of each direction
  int64_t w_ih_stride[2] = {0, 0};           // from row to row
  const void* w_hh[2] = {nullptr, nullptr};  // (G*H,H) T of each direction
  int64_t w_hh_stride[2] = {0, 0};           // from row to row
  const void* b_ih[2] = {nullptr, nullptr};  // (G*H) T of each direction, or null
  const void* b_hh[2] = {nullptr, nullptr};  // likewise, null where b_ih is
  const void* h0 = nullptr;                  // (D,B,H) T
  const void* c0 = nullptr;                  // (D,B,H) T, LSTM

  void* y = nullptr;       // (N,D*H) T out
  void* hn = nullptr;      // (D,B,H) T out: each row's last state in the direction's own time
  void* cn = nullptr;      // (D,B,H) T out, LSTM
  void* gates = nullptr;   // (D,N,S*H) T out; null: not saved. May be gx where gx_stride is S*H
  float* cells = nullptr;  // (D,N,H) out, LSTM; null: not saved

  void* workspace = nullptr;  // geometry's workspace_bytes, aligned to 256
  int64_t workspace_bytes = 0;
  uint32_t wait_ticks = 0;  // of 2^20 ns, before a wait gives up; 0: kWaitTicks
};

// The gradient of the gates, all steps. The products for x, the weights and the biases come after it.
struct PersistentBackward {
  LayerShape shape;
  Precision precision = Precision::kFloat32;
  const int64_t* row_offsets = nullptr;
  const int64_t* lengths = nullptr;
  const uint8_t* resets = nullptr;

  const void* w_hh[2] = {nullptr, nullptr};  // (G*H,H) T of each direction
  int64_t w_hh_stride[2] = {0, 0};
  const void* gates = nullptr;    // (D,N,S*H) T as saved by forward or recomputed; LSTM, GRU
  const float* cells = nullptr;   // (D,N,H); LSTM
  const void* y = nullptr;        // (N,D*H) T; GRU, RNN
  const void* h0 = nullptr;       // (D,B,H) T; GRU
  const void* c0 = nullptr;       // (D,B,H) T; LSTM
  const void* grad_y = nullptr;   // (N,D*H) T, or null: zero
  int64_t grad_y_stride = 0;      // from row to row
  const void* grad_hn = nullptr;  // (D,B,H) T, or null: zero
  const void* grad_cn = nullptr;  // (D,B,H) T, or null: zero; LSTM
  // (D,N,H), of every step's c, or null: zero; LSTM. Read where it is needed, not ahead: whoever asks for it waits
  // for memory at every step, and nobody else has registers taken.
  const float* grad_cells = nullptr;

  void* dgates = nullptr;  // (D,N,Gr*H) T out, GRU in the order n, r, z, rec. May be gates (where saved)
  void* dh0 = nullptr;     // (D,B,H) T out; null: not needed
  void* dc0 = nullptr;     // (D,B,H) T out, LSTM; null: not needed

  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  uint32_t wait_ticks = 0;
};

constexpr uint32_t kWaitTicks = 9537;  // 10 seconds: a step takes microseconds

// cudaError_t as int; no synchronisation, no allocation; T = 0 or B = 0 is the caller's. The geometry is that of
// this very layer. cudaErrorCooperativeLaunchTooLarge: the device has no room for the grid at once (another
// context's share, MIG); nothing was launched, so the caller may take the stepwise tier. The same for a cluster
// tier of which the device has no room for one cluster, or which was not compiled for it.
// cudaErrorInvalidValue: the geometry does not fit, T is above 2^31-1, or the workspace is too small.
int persistent_forward(const PersistentForward& p, const PersistentGeometry& g, void* stream);
int persistent_backward(const PersistentBackward& p, const PersistentGeometry& g, void* stream);

}  // namespace fastrnn::cuda
