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
#include "cpu/rnn/slstm_backward.inl"
#include "cpu/rnn/slstm_forward.inl"
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

// Calls f.template operator()<Cell>() for the one of these cells.
template <template <class> class Lstm, template <class> class Gru, template <class> class RnnTanh,
          template <class> class RnnRelu, class F>
void with_cell_of(CellKind kind, F&& f) {
  switch (kind) {
    case CellKind::kLstm:
      return f.template operator()<Lstm>();
    case CellKind::kGru:
      return f.template operator()<Gru>();
    case CellKind::kRnnTanh:
      return f.template operator()<RnnTanh>();
    case CellKind::kRnnRelu:
      return f.template operator()<RnnRelu>();
  }
}

// The one list of cells on the CPU.
template <class F>
void with_cell(CellKind kind, F&& f) {
  static_assert(matches<LstmCell>(CellKind::kLstm) && matches<GruCell>(CellKind::kGru) &&
                matches<RnnTanhCell>(CellKind::kRnnTanh) && matches<RnnReluCell>(CellKind::kRnnRelu));
  with_cell_of<LstmCell, GruCell, RnnTanhCell, RnnReluCell>(kind, f);
}
// With a variant's instances of them.
template <class F>
void with_cell_or_stages(const LayerShape& shape, F&& f) {
  shape.variant.any() ? with_cell_of<LstmStages, GruStages, RnnTanhStages, RnnReluStages>(shape.cell, f)
                      : with_cell(shape.cell, f);
}

// A pass (Forward or Backward) of every layer, in its compute type: with(shape, f) calls f.template operator()<K>()
// for the kernel K of a layer.
template <template <class, template <class> class, class> class Pass>
struct Plain {
  template <class F>
  static void with(const LayerShape& shape, F&& f) {
    with_cell_or_stages(shape, [&]<template <class> class Cell>() { with_type<Cell>(shape, f); });
  }
  // Of layers that are not a variant's.
  template <class F>
  static void with_plain_cell(const LayerShape& shape, F&& f) {
    with_cell(shape.cell, [&]<template <class> class Cell>() { with_type<Cell>(shape, f); });
  }

 private:
  template <template <class> class Cell, class F>
  static void with_type(const LayerShape& shape, F&& f) {
    shape.dtype == Dtype::kDouble ? f.template operator()<Pass<double, Cell, NaturalOperand<double>>>()
                                  : f.template operator()<Pass<float, Cell, NaturalOperand<float>>>();
  }
};

template <class Passes, class Params>
size_t workspace_of(const Params& params, const CpuPlan& plan) {
  size_t bytes = 0;
  Passes::with(params.shape, [&]<class K>() { bytes = K(params, plan, nullptr).workspace_bytes(); });
  return bytes;
}

template <class Passes, class Params>
void run_kernel(const Params& params, const CpuPlan& plan, char* workspace, const Parallel& parallel) {
  Passes::with(params.shape, [&]<class K>() {
    K kernel(params, plan, workspace);
    parallel.run(kernel.workers(), K::body, &kernel);
  });
}

// The weights of a layer as one of the Forwards reads them.
template <class Passes>
size_t packed_bytes_of(const LayerShape& shape) {
  size_t bytes = 0;
  Passes::with_plain_cell(shape, [&]<class K>() { bytes = K::Weights::bytes(shape); });
  return bytes;
}

template <class Passes>
void pack_weights(const LayerShape& shape, const DirectionWeights& weights, char* to) {
  Passes::with_plain_cell(shape, [&]<class K>() {
    typename K::Weights packed;
    packed.read(to, shape);
    packed.pack(weights, shape);
  });
}

template <template <class> class Kernel, class Params>
size_t slstm_workspace(const Params& params, const SlstmPlan& plan) {
  return params.in.shape.dtype == Dtype::kDouble ? Kernel<double>(params, plan, nullptr).workspace_bytes()
                                                 : Kernel<float>(params, plan, nullptr).workspace_bytes();
}

template <template <class> class Kernel, class Params>
void run_slstm(const Params& params, const SlstmPlan& plan, char* workspace, const Parallel& parallel) {
  const auto run = [&]<class T>() {
    Kernel<T> kernel(params, plan, workspace);
    parallel.run(plan.workers(), Kernel<T>::body, &kernel);
  };
  params.in.shape.dtype == Dtype::kDouble ? run.template operator()<double>() : run.template operator()<float>();
}

// A cell alone, as a tile of rows goes through it: what is work beside the products' multiply-adds.
template <template <class> class CellOf>
double cell_units(int64_t iterations) {
  using S = Simd<float>;
  using V = S::V;
  using C = CellOf<VectorMath<float>>;
  constexpr int kRows = 6, G = C::kGates;
  V pre[kRows][G], rec[kRows], h[kRows], c[kRows], saved[kRows][C::kSaved ? C::kSaved : 1];
  for (int m = 0; m < kRows; ++m) {
    for (int g = 0; g < G; ++g) pre[m][g] = S::set(0.1 * (m + 1) - 0.2 * g);
    rec[m] = h[m] = c[m] = S::set(0.05 * m);
  }
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 1
    for (int m = 0; m < kRows; ++m) C::forward(pre[m], rec[m], h[m], c[m], saved[m], c[m], h[m]);
    forget_memory();
  }
  for (int m = 1; m < kRows; ++m) h[0] += h[m];
  keep(h[0]);
  return static_cast<double>(iterations) * kRows * S::W;
}
double cell_loop(CellKind kind, int64_t iterations) {
  double units = 0;
  with_cell(kind, [&]<template <class> class Cell>() { units = cell_units<Cell>(iterations); });
  return units;
}

int lanes(Dtype dtype) { return dtype == Dtype::kDouble ? Simd<double>::W : Simd<float>::W; }

constexpr KernelTable make_table(const char* name, bool (*runs_here)(), const ScanKernels* scan) {
  return {name,
          runs_here,
          lanes,
          tile_rows(kPanelVectors),
          workspace_of<Plain<Forward>, ForwardParams>,
          run_kernel<Plain<Forward>, ForwardParams>,
          packed_bytes_of<Plain<Forward>>,
          pack_weights<Plain<Forward>>,
          workspace_of<Plain<Backward>, BackwardParams>,
          run_kernel<Plain<Backward>, BackwardParams>,
          gate_product_workspace,
          gate_product,
          slstm_workspace<SlstmForward, SlstmForwardParams>,
          run_slstm<SlstmForward, SlstmForwardParams>,
          slstm_workspace<SlstmBackward, SlstmBackwardParams>,
          run_slstm<SlstmBackward, SlstmBackwardParams>,
          fma_loop,
          read_loop,
          cell_loop,
          scan};
}

#ifdef FASTRNN_HAS_BF16_DOT
// The table, where every entry has a kernel; else it does not compile. (UBSan's g++ knows no function's address so
// early.)
constexpr KernelTable complete(const KernelTable& table) {
#ifndef __SANITIZE_ADDRESS__
  const auto& [name, runs_here, lanes, tile_rows, forward_workspace, forward, packed_bytes, pack, backward_workspace,
               backward, gate_product_workspace, gate_product, slstm_forward_workspace, slstm_forward,
               slstm_backward_workspace, slstm_backward, fma_loop, read_loop, cell_loop, scan] = table;
  const bool all = name && runs_here && lanes && tile_rows && forward_workspace && forward && packed_bytes && pack &&
                   backward_workspace && backward && gate_product_workspace && gate_product &&
                   slstm_forward_workspace && slstm_forward && slstm_backward_workspace && slstm_backward &&
                   fma_loop && read_loop && cell_loop && scan;
  if (!all) throw "an entry is missing";
#endif
  return table;
}

// A pass of bfloat16 layers by an instruction for them. A variant's products are others'.
template <template <class, template <class> class, class> class Pass, class Operand>
struct OfBfloat16 {
  static bool serves(const LayerShape& shape) { return shape.dtype == Dtype::kBFloat16 && !shape.variant.any(); }
  // With enough rows to repay packing.
  static bool serves(const LayerShape& shape, const CpuPlan& plan) { return serves(shape) && !plan.direct; }

  template <class F>
  static void with(const LayerShape& shape, F&& f) {
    with_cell(shape.cell,
              [&]<template <class> class Cell>() { f.template operator()<Pass<float, Cell, Operand>>(); });
  }
  template <class F>
  static void with_plain_cell(const LayerShape& shape, F&& f) {
    with(shape, f);
  }
};

// kRest, but for bfloat16 layers. Of kRest, which another file may hold, nothing is read before a kernel runs.
template <const KernelTable& kRest, class Operand>
constexpr KernelTable make_bf16_table(const char* name, bool (*runs_here)(), const ScanKernels* scan) {
  using Forwards = OfBfloat16<Forward, Operand>;
  using Backwards = OfBfloat16<Backward, Operand>;
  KernelTable table{};
  table.name = name;
  table.runs_here = runs_here;
  table.lanes = lanes;
  table.tile_rows = Operand::tile_rows(kPanelVectors);
  table.forward_workspace = [](const ForwardParams& params, const CpuPlan& plan) {
    return Forwards::serves(params.shape, plan) ? workspace_of<Forwards>(params, plan)
                                                : kRest.forward_workspace(params, plan);
  };
  table.forward = [](const ForwardParams& params, const CpuPlan& plan, char* workspace, const Parallel& parallel) {
    Forwards::serves(params.shape, plan) ? run_kernel<Forwards>(params, plan, workspace, parallel)
                                         : kRest.forward(params, plan, workspace, parallel);
  };
  table.packed_bytes = [](const LayerShape& shape) {
    return Forwards::serves(shape) ? packed_bytes_of<Forwards>(shape) : kRest.packed_bytes(shape);
  };
  table.pack = [](const LayerShape& shape, const DirectionWeights& weights, char* to) {
    Forwards::serves(shape) ? pack_weights<Forwards>(shape, weights, to) : kRest.pack(shape, weights, to);
  };
  table.backward_workspace = [](const BackwardParams& params, const CpuPlan& plan) {
    return Backwards::serves(params.shape, plan) ? workspace_of<Backwards>(params, plan)
                                                 : kRest.backward_workspace(params, plan);
  };
  table.backward = [](const BackwardParams& params, const CpuPlan& plan, char* workspace, const Parallel& parallel) {
    Backwards::serves(params.shape, plan) ? run_kernel<Backwards>(params, plan, workspace, parallel)
                                          : kRest.backward(params, plan, workspace, parallel);
  };
  table.gate_product_workspace = [](const GateProductParams& params, int workers) {
    return kRest.gate_product_workspace(params, workers);
  };
  table.gate_product = [](const GateProductParams& params, int workers, char* workspace, const Parallel& parallel) {
    kRest.gate_product(params, workers, workspace, parallel);
  };
  table.slstm_forward_workspace = [](const SlstmForwardParams& params, const SlstmPlan& plan) {
    return kRest.slstm_forward_workspace(params, plan);
  };
  table.slstm_forward = [](const SlstmForwardParams& params, const SlstmPlan& plan, char* workspace,
                           const Parallel& parallel) { kRest.slstm_forward(params, plan, workspace, parallel); };
  table.slstm_backward_workspace = [](const SlstmBackwardParams& params, const SlstmPlan& plan) {
    return kRest.slstm_backward_workspace(params, plan);
  };
  table.slstm_backward = [](const SlstmBackwardParams& params, const SlstmPlan& plan, char* workspace,
                            const Parallel& parallel) { kRest.slstm_backward(params, plan, workspace, parallel); };
  table.fma_loop = [](int64_t iterations) { return kRest.fma_loop(iterations); };
  table.read_loop = [](const float* data, int64_t count, int64_t repeats) {
    return kRest.read_loop(data, count, repeats);
  };
  table.cell_loop = [](CellKind cell, int64_t iterations) { return kRest.cell_loop(cell, iterations); };
  table.scan = scan;
  return complete(table);
}
#endif

}  // namespace
}  // namespace fastrnn
