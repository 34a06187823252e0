// Launches of the scan's kernels: one instance a type, width and cell, chosen here.
#include "cuda/scan/kernels.cuh"

#include "cells/sru.h"
#include "cuda/device/launch.cuh"

namespace fastrnn::cuda {
namespace {

// Two values of a half type a thread from here on: fewer instructions a value. Below, more threads are worth
// more: 64k columns give every scheduler of a large GPU two warps of pairs.
#ifndef FASTRNN_WIDE_COLUMNS  // the emulator's problems are small
#define FASTRNN_WIDE_COLUMNS (64 << 10)
#endif
constexpr int64_t kWideColumns = FASTRNN_WIDE_COLUMNS;

template <int wide>
struct Width {};

// Whether every pair of a half type's values in these rows is a word at a multiple of 4 bytes.
bool paired(const void* data, int64_t a, int64_t b, int64_t c = 0) {
  return reinterpret_cast<uintptr_t>(data) % 4 == 0 && (a | b | c) % 2 == 0;
}
bool paired(const GateRows& rows) { return paired(rows.data, rows.step_stride, rows.row_stride, rows.gate_stride); }
bool paired(const TensorRows& rows) { return paired(rows.data, rows.step_stride, rows.row_stride); }
bool paired(const ScanInputs& in) {
  const ScanShape& s = in.shape;
  return s.H() % 2 == 0 && paired(in.u) && paired(in.x) && paired(in.v) && paired(in.weight_c, s.O, 0) &&
         paired(in.bias, s.O, 0) && paired(in.c0, s.O, 0) && paired(in.drop_mask, s.O, 0);
}

// f(TypeTag<T>, Width<n>): pairs where the type is a half type and pays for them.
template <class F>
int with_type_and_width(const ScanShape& s, bool may_pair, F f) {
  return with_type(s.dtype, [&]<class T>(TypeTag<T> type) {
    if constexpr (sizeof(T) == 2) {
      if (may_pair && s.B * s.O >= kWideColumns) return f(type, Width<2>{});
    }
    return f(type, Width<1>{});
  });
}

// f.template operator()<Cell>().
template <class F>
int with_cell(const ScanShape& s, F f) {
  return s.use_tanh ? f.template operator()<SruTanhCell>() : f.template operator()<SruPlainCell>();
}

int64_t blocks_for(const ScanShape& s, int wide, int threads) { return (s.B * (s.O / wide) + threads - 1) / threads; }

}  // namespace

int scan_forward(const ScanForwardParams& params, const ScanTables& tables, void* stream) {
  const ScanShape& s = params.in.shape;
  return with_type_and_width(s, paired(params.in), [&]<class T, int wide>(TypeTag<T>, Width<wide>) {
    constexpr int threads = kScanBlock<T>;
    return with_cell(s, [&]<template <class> class Cell>() {
      const int streams = input_streams<Cell<ScanMath<Compute<T>>>>(params.in);
      const int64_t bytes = Ring<T, wide>::bytes(streams, 0, params.in.flags != nullptr);
      return launch_shared(scan_forward_kernel<T, wide, Cell>, blocks_for(s, wide, threads), threads,
                           bytes * kSteps * threads, stream, params, tables);
    });
  });
}

int scan_backward(const ScanBackwardParams& params, const ScanTables& tables, void* partials, void* stream) {
  const ScanShape& s = params.in.shape;
  const bool may_pair = paired(params.in) && paired(params.grad_h) && paired(params.grad_c, s.O, 0);
  return with_type_and_width(s, may_pair, [&]<class T, int wide>(TypeTag<T>, Width<wide>) {
    constexpr int threads = kScanBlock<T>;
    return with_cell(s, [&]<template <class> class Cell>() {
      const int inputs = input_streams<Cell<ScanMath<Compute<T>>>>(params.in);
      const int streams = inputs + (params.grad_h.data != nullptr);
      const int64_t bytes = Ring<T, wide>::bytes(streams, cell_streams(params), params.in.flags != nullptr);
      return launch_shared(scan_backward_kernel<T, wide, Cell>, blocks_for(s, wide, threads), threads,
                           bytes * kSteps * threads, stream, params, tables, static_cast<Compute<T>*>(partials));
    });
  });
}

int scan_flags(const ScanShape& s, const uint8_t* pads, const uint8_t* resets, uint8_t* flags, void* stream) {
  constexpr int threads = 256, at_once = threads * kFlagsAThread;
  return launch(scan_flags_kernel, (s.D * s.T * s.B + at_once - 1) / at_once, threads, stream, pads, resets, s.D, s.T,
                s.B, flags);
}

int scan_sums(const ScanShape& s, const void* partials, void* grad_weight_c, void* grad_bias, void* stream) {
  constexpr int gates = SruPlainCell<ScanMath<float>>::kGates;
  return with_type(s.dtype, [&]<class T>(TypeTag<T>) {
    return launch(scan_sums_kernel<T>, (2 * gates * s.O + kSumColumns - 1) / kSumColumns, kSumColumns * kSumRows,
                  stream, s.B, s.O, gates, static_cast<const Compute<T>*>(partials), static_cast<T*>(grad_weight_c),
                  static_cast<T*>(grad_bias));
  });
}

}  // namespace fastrnn::cuda
