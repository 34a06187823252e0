// Included by isa/*.cpp.
#pragma once
#include "cpu/quantized/forward.inl"

namespace fastrnn {
namespace {

template <class F>
void with_quantized(const QuantizedParams& params, F&& f) {
  const auto with_storage = [&]<template <class> class Cell>() {
    params.storage == Storage::kInt8 ? f.template operator()<QuantizedForward<Storage::kInt8, Cell>>()
                                     : f.template operator()<QuantizedForward<Storage::kBFloat16, Cell>>();
  };
  switch (params.shape.cell) {
    case CellKind::kLstm:
      return with_storage.template operator()<LstmCell>();
    case CellKind::kGru:
      return with_storage.template operator()<GruCell>();
    case CellKind::kRnnTanh:
      return with_storage.template operator()<RnnTanhCell>();
    case CellKind::kRnnRelu:
      return with_storage.template operator()<RnnReluCell>();
  }
}

size_t quantized_workspace(const QuantizedParams& params, const CpuPlan& plan) {
  size_t bytes = 0;
  with_quantized(params, [&]<class Kernel>() { bytes = Kernel(params, plan, nullptr).workspace_bytes(); });
  return bytes;
}

void run_quantized(const QuantizedParams& params, const CpuPlan& plan, char* workspace, const Parallel& parallel) {
  with_quantized(params, [&]<class Kernel>() {
    Kernel kernel(params, plan, workspace);
    // Without a plan for more threads the calling one takes all workers, two directions too.
    if (plan.direction_groups * plan.unit_groups == 1) return Kernel::body(0, kernel.workers(), &kernel);
    parallel.run(kernel.workers(), Kernel::body, &kernel);
  });
}

constexpr QuantizedKernels make_quantized_kernels() { return {quantized_workspace, run_quantized}; }

}  // namespace
}  // namespace fastrnn
