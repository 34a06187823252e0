// The kernels of one instruction set: included by isa_*.cpp after its target pragma.
#pragma once
#include "cells/policies/stages.h"
#include "cpu/rnn/backward_chunk.inl"
#include "cpu/rnn/backward_recompute.inl"
#include "cpu/rnn/backward_stages.inl"
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

// Calls f.template operator()<T, Cell>() for the layer's compute type and cell: the one list of
// cells on the CPU.
template <class F>
void with_kernel(const LayerShape& shape, F&& f) {
  const auto with_cell = [&](auto zero) {
    using T = decltype(zero);
    switch (shape.cell) {
      case CellKind::kLstm:
        static_assert(matches<LstmCell>(CellKind::kLstm) && matches<GruCell>(CellKind::kGru) &&
                      matches<RnnTanhCell>(CellKind::kRnnTanh) && matches<RnnReluCell>(CellKind::kRnnRelu));
        return f.template operator()<T, LstmCell>();
      case CellKind::kGru:
        return f.template operator()<T, GruCell>();
      case CellKind::kRnnTanh:
        return f.template operator()<T, RnnTanhCell>();
      case CellKind::kRnnRelu:
        return f.template operator()<T, RnnReluCell>();
    }
  };
  if (shape.dtype == Dtype::kDouble) {
    with_cell(double{});
  } else {
    with_cell(float{});
  }
}

// The same for a variant's instances of the cells.
template <class F>
void with_stages(const LayerShape& shape, F&& f) {
  const auto with_cell = [&](auto zero) {
    using T = decltype(zero);
    switch (shape.cell) {
      case CellKind::kLstm:
        return f.template operator()<T, LstmStages>();
      case CellKind::kGru:
        return f.template operator()<T, GruStages>();
      case CellKind::kRnnTanh:
        return f.template operator()<T, RnnTanhStages>();
      case CellKind::kRnnRelu:
        return f.template operator()<T, RnnReluStages>();
    }
  };
  if (shape.dtype == Dtype::kDouble) {
    with_cell(double{});
  } else {
    with_cell(float{});
  }
}

template <template <class, template <class> class> class Kernel, class Params>
size_t workspace_of(const Params& params, const CpuPlan& plan) {
  size_t bytes = 0;
  with_kernel(params.shape, [&]<class T, template <class> class Cell>() {
    bytes = Kernel<T, Cell>(params, plan, nullptr).workspace_bytes();
  });
  return bytes;
}

template <template <class, template <class> class> class Kernel, class Params>
void run_kernel(const Params& params, const CpuPlan& plan, char* workspace, const Parallel& parallel) {
  with_kernel(params.shape, [&]<class T, template <class> class Cell>() {
    Kernel<T, Cell> kernel(params, plan, workspace);
    parallel.run(kernel.workers(), Kernel<T, Cell>::body, &kernel);
  });
}

template <class T, template <class> class Cell>
using PlainForward = Forward<T, Cell, NaturalOperand<T>>;

template <template <class, template <class> class> class Kernel, class Params>
size_t stages_workspace(const Params& params, const CpuPlan& plan) {
  size_t bytes = 0;
  with_stages(params.shape, [&]<class T, template <class> class Cell>() {
    bytes = Kernel<T, Cell>(params, plan, nullptr).workspace_bytes();
  });
  return bytes;
}

template <template <class, template <class> class> class Kernel, class Params>
void run_stages(const Params& params, const CpuPlan& plan, char* workspace, const Parallel& parallel) {
  with_stages(params.shape, [&]<class T, template <class> class Cell>() {
    Kernel<T, Cell> kernel(params, plan, workspace);
    parallel.run(kernel.workers(), Kernel<T, Cell>::body, &kernel);
  });
}

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
template <class T>
struct DotOperand {
  using type = NaturalOperand<T>;
};
template <>
struct DotOperand<float> {
  using type = Bf16Operand;
};
template <class T, template <class> class Cell>
using DotForward = Forward<T, Cell, typename DotOperand<T>::type>;

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
          stages_workspace<PlainForward, ForwardParams>,
          run_stages<PlainForward, ForwardParams>,
          stages_workspace<Backward, BackwardParams>,
          run_stages<Backward, BackwardParams>,
          gate_product_workspace,
          gate_product,
          fma_loop,
          read_loop,
          scan};
}

}  // namespace
}  // namespace fastrnn
