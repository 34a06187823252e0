// The CPU's loops with cells that the library does not have, in float64, for
// test_stages.py: the same sources with other policies.
#define FASTRNN_VECTOR_BYTES 16
#include <cstdlib>
#include <thread>
#include <vector>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/rnn/backward_chunk.inl"
#include "cpu/rnn/backward_ends.inl"
#include "cpu/rnn/backward_recompute.inl"
#include "cpu/rnn/backward_step.inl"
#include "cpu/rnn/forward_step.inl"
#include "stages_policies.h"

namespace {

using namespace fastrnn;
using namespace fastrnn::stages;

void run_parallel(int64_t workers, void (*body)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < workers; ++i) threads.emplace_back(body, i, i + 1, context);
  for (std::thread& thread : threads) thread.join();
}

template <class Kernel, class Params>
void run(const Params& params, const CpuPlan& plan) {
  const size_t bytes = Kernel(params, plan, nullptr).workspace_bytes();
  char* const scratch = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  __builtin_memset(scratch, 0xff,
                   bytes);  // NaN: nothing is read before it is written
  Kernel kernel(params, plan, scratch);
  run_parallel(kernel.workers(), Kernel::body, &kernel);
  std::free(scratch);
}

// What both passes are told: sizes T, B, I, H, P, D, batch groups, unit groups,
// steps of a chunk, direct; and where.
struct Told {
  LayerShape shape;
  CpuPlan plan;
  DirectionWeights weights[2];
};
Told told(int cell, const int64_t* sizes, void* const* weights, const uint8_t* resets) {
  Told t;
  t.shape.cell = cell == 0 ? CellKind::kLstm : cell == 1 ? CellKind::kGru : CellKind::kRnnTanh;
  t.shape.dtype = Dtype::kDouble;
  t.shape.T = sizes[0], t.shape.B = sizes[1], t.shape.I = sizes[2], t.shape.H = sizes[3], t.shape.P = sizes[4];
  t.shape.D = static_cast<int>(sizes[5]);
  t.shape.bias = true;
  t.shape.resets = resets;
  t.plan.batch_groups = static_cast<int>(sizes[6]);
  t.plan.unit_groups = static_cast<int>(sizes[7]);
  t.plan.forward_chunk = t.plan.backward_chunk = sizes[8];
  t.plan.direct = sizes[9];
  for (int d = 0; d < t.shape.D; ++d) {
    void* const* w = weights + 5 * d;
    t.weights[d] = {w[0], w[1], w[2], w[3], w[4]};
  }
  return t;
}
TensorRows rows_of(const LayerShape& s, void* data, int64_t width) {
  TensorRows rows;
  rows.data = data, rows.step_stride = s.B * width, rows.row_stride = width;
  return rows;
}

template <class F>
void with_cell(int cell, F&& f) {
  if (cell == 0) return f.template operator()<WithPolicies<LstmCell, Squash, KeepBoth>::Of>();
  if (cell == 1) return f.template operator()<WithPolicies<GruCell, Squash, KeepH>::Of>();
  f.template operator()<WithPolicies<RnnTanhCell, Squash, KeepSavedH>::Of>();
}

}  // namespace

// data: x, h0, c0, y, hn, cn, gates, cells
extern "C" __attribute__((visibility("default"))) void stages_forward(int cell, const int64_t* sizes,
                                                                      void* const* weights, const uint8_t* resets,
                                                                      void* const* data) {
  const Told t = told(cell, sizes, weights, resets);
  ForwardParams p;
  p.shape = t.shape;
  p.x = rows_of(p.shape, data[0], p.shape.I);
  p.h0 = data[1], p.c0 = data[2], p.y = data[3], p.hn = data[4], p.cn = data[5], p.gates = data[6], p.cells = data[7];
  p.save = p.gates ? Save::kGates : Save::kRecompute;
  for (int d = 0; d < p.shape.D; ++d) p.weights[d] = t.weights[d];
  with_cell(cell,
            [&]<template <class> class Cell>() { run<Forward<double, Cell, NaturalOperand<double>>>(p, t.plan); });
}

// data: x, h0, c0, y, gates, cells, grad_y, grad_hn, grad_cn, grad_cells,
// grad_x of each direction, grad_h0, grad_c0; grads: of the weights
extern "C" __attribute__((visibility("default"))) void stages_backward(int cell, const int64_t* sizes,
                                                                       void* const* weights, const uint8_t* resets,
                                                                       void* const* data, void* const* grads) {
  const Told t = told(cell, sizes, weights, resets);
  BackwardParams p;
  p.shape = t.shape;
  p.x = rows_of(p.shape, data[0], p.shape.I);
  p.h0 = data[1], p.c0 = data[2], p.y = data[3], p.gates = data[4], p.cells = data[5];
  p.grad_y = rows_of(p.shape, data[6], p.shape.D * p.shape.out_size());
  p.grad_hn = data[7], p.grad_cn = data[8], p.grad_cells = data[9];
  p.grad_x[0] = data[10], p.grad_x[1] = data[11], p.grad_h0 = data[12], p.grad_c0 = data[13];
  p.need_weights = true;
  for (int d = 0; d < p.shape.D; ++d) {
    void* const* g = grads + 5 * d;
    p.weights[d] = t.weights[d];
    p.grad_weights[d] = {g[0], g[1], g[2], g[3], g[4]};
  }
  with_cell(cell,
            [&]<template <class> class Cell>() { run<Backward<double, Cell, NaturalOperand<double>>>(p, t.plan); });
}
