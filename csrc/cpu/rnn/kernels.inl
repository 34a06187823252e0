// The kernels of one instruction set: included by the files of cpu/isa.
#pragma once
#include "cells/policies/stages.h"
#include "cpu/rnn/backward_chunk.inl"
#include "cpu/rnn/backward_ends.inl"
#include "cpu/rnn/backward_norm.inl"
#include "cpu/rnn/backward_recompute.inl"
#include "cpu/rnn/backward_stages.inl"
#include "cpu/rnn/backward_stages_chunk.inl"
#include "cpu/rnn/forward_stages.inl"
#include "cpu/simd/limits.inl"

namespace fastrnn {
namespace {

// Whether the list of cells says what the cell's struct does.
template <template <class> class Cell>
constexpr bool matches(CellKind kind) {
  using C = Cell<VectorMath<float>>;
  const CellFacts& facts = facts_of(kind);
  return facts.gates == C::kGates && facts.saved == C::kSaved && facts.has_cell == C::kHasCell &&
         facts.split == C::kSplit;
}

// Calls f.template operator()<T, Cell>() for the layer's compute type and its one of these cells.
template <template <class> class Lstm, template <class> class Gru, template <class> class RnnTanh,
          template <class> class RnnRelu, class F>
void with_cell_of(const LayerShape& shape, F&& f) {
  const auto with_type = [&]<template <class> class Cell>() {
    shape.dtype == Dtype::kDouble ? f.template operator()<double, Cell>() : f.template operator()<float, Cell>();
  };
  switch (shape.cell) {
    case CellKind::kLstm:
      return with_type.template operator()<Lstm>();
    case CellKind::kGru:
      return with_type.template operator()<Gru>();
    case CellKind::kRnnTanh:
      return with_type.template operator()<RnnTanh>();
    case CellKind::kRnnRelu:
      return with_type.template operator()<RnnRelu>();
  }
}

// The one list of cells on the CPU.
template <class F>
void with_kernel(const LayerShape& shape, F&& f) {
  static_assert(matches<LstmCell>(CellKind::kLstm) && matches<GruCell>(CellKind::kGru) &&
                matches<RnnTanhCell>(CellKind::kRnnTanh) && matches<RnnReluCell>(CellKind::kRnnRelu));
  with_cell_of<LstmCell, GruCell, RnnTanhCell, RnnReluCell>(shape, f);
}
// With a variant's instances of them.
template <class F>
void with_kernel_or_stages(const LayerShape& shape, F&& f) {
  shape.variant.any() ? with_cell_of<LstmStages, GruStages, RnnTanhStages, RnnReluStages>(shape, f)
                      : with_kernel(shape, f);
}

template <template <class, template <class> class> class Kernel, class Params>
size_t workspace_of(const Params& params, const CpuPlan& plan) {
  size_t bytes = 0;
  with_kernel_or_stages(params.shape, [&]<class T, template <class> class Cell>() {
    bytes = Kernel<T, Cell>(params, plan, nullptr).workspace_bytes();
  });
  return bytes;
}

template <template <class, template <class> class> class Kernel, class Params>
void run_kernel(const Params& params, const CpuPlan& plan, char* workspace, const Parallel& parallel) {
  with_kernel_or_stages(params.shape, [&]<class T, template <class> class Cell>() {
    Kernel<T, Cell> kernel(params, plan, workspace);
    parallel.run(kernel.workers(), Kernel<T, Cell>::body, &kernel);
  });
}

template <class T, template <class> class Cell>
using PlainForward = Forward<T, Cell, NaturalOperand<T>>;

// The weights of a layer as one of the Forwards reads them.
template <template <class, template <class> class> class Kernel>
size_t packed_bytes_of(const LayerShape& shape) {
  size_t bytes = 0;
  with_kernel(shape, [&]<class T, template <class> class Cell>() { bytes = Kernel<T, Cell>::Weights::bytes(shape); });
  return bytes;
}

template <template <class, template <class> class> class Kernel>
void pack_weights(const LayerShape& shape, const DirectionWeights& weights, char* to) {
  with_kernel(shape, [&]<class T, template <class> class Cell>() {
    typename Kernel<T, Cell>::Weights packed;
    packed.read(to, shape);
    packed.pack(weights, shape, 0, 1);
  });
}

#ifdef FASTRNN_HAS_BF16_DOT
template <class T, bool kVariant>
struct DotOperand {
  using type = NaturalOperand<T>;
};
template <>
struct DotOperand<float, false> {
  using type = Bf16Operand;
};
template <class T, template <class> class Cell>
using DotForward = Forward<T, Cell, typename DotOperand<T, Cell<VectorMath<T>>::kVariant>::type>;

// The dot instruction serves bfloat16 layers with enough rows to repay packing.
bool uses_dot(const ForwardParams& params, const CpuPlan& plan) {
  return params.shape.dtype == Dtype::kBFloat16 && !plan.direct;
}
size_t dot_workspace(const ForwardParams& params, const CpuPlan& plan) {
  return uses_dot(params, plan) ? workspace_of<DotForward>(params, plan) : workspace_of<PlainForward>(params, plan);
}
void run_dot(const ForwardParams& params, const CpuPlan& plan, char* workspace, const Parallel& parallel) {
  uses_dot(params, plan) ? run_kernel<DotForward>(params, plan, workspace, parallel)
                         : run_kernel<PlainForward>(params, plan, workspace, parallel);
}
size_t dot_packed_bytes(const LayerShape& shape) {
  return shape.dtype == Dtype::kBFloat16 ? packed_bytes_of<DotForward>(shape) : packed_bytes_of<PlainForward>(shape);
}
void dot_pack(const LayerShape& shape, const DirectionWeights& weights, char* to) {
  shape.dtype == Dtype::kBFloat16 ? pack_weights<DotForward>(shape, weights, to)
                                  : pack_weights<PlainForward>(shape, weights, to);
}
#endif

int lanes(Dtype dtype) { return dtype == Dtype::kDouble ? Simd<double>::W : Simd<float>::W; }

constexpr KernelTable make_table(const char* name, bool (*runs_here)(), const ScanKernels* scan) {
  return {name,
          runs_here,
          lanes,
          tile_rows(kPanelVectors),
          workspace_of<PlainForward, ForwardParams>,
          run_kernel<PlainForward, ForwardParams>,
          packed_bytes_of<PlainForward>,
          pack_weights<PlainForward>,
          workspace_of<Backward, BackwardParams>,
          run_kernel<Backward, BackwardParams>,
          gate_product_workspace,
          gate_product,
          fma_loop,
          read_loop,
          scan};
}

#ifdef FASTRNN_HAS_BF16_DOT
// The same, but for the forward pass of bfloat16 layers.
constexpr KernelTable make_dot_table(const char* name, bool (*runs_here)(), const ScanKernels* scan) {
  KernelTable table = make_table(name, runs_here, scan);
  table.forward_workspace = dot_workspace;
  table.forward = run_dot;
  table.packed_bytes = dot_packed_bytes;
  table.pack = dot_pack;
  return table;
}
#endif

}  // namespace
}  // namespace fastrnn
