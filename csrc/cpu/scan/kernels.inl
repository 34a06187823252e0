// The SRU's scan over the whole sequence, forward and backward (cells/sru.h), for one instruction set.
//
// Every column (row of the batch, feature) is a recurrence of its own, and a step of it costs some forty
// operations for five or more values from memory: the scan is bound by memory. So a worker takes a share of
// the columns and walks through time with all of them, in the order in which u lies in memory: K + 1
// sequential streams in, one or two out, while c (forward) or its gradient (backward) stays in the cache.
// The next row is prefetched, because hardware prefetchers start anew with every row of a gate.
//
// Bytes a column and step, e bytes an element, a bytes a state value: forward (K+2)e, with x e more, a more
// where c is saved; backward reads (K+2)e + a, writes (K+1)e.
#pragma once
#include "cells/sru.h"
#include "cpu/scan/backward.inl"
#include "cpu/scan/elementwise_backward.inl"
#include "cpu/scan/elementwise_forward.inl"
#include "cpu/scan/forward.inl"

namespace fastrnn {
namespace {

// Calls f.template operator()<T, dtype>(), T being what is computed in.
template <class F>
void with_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat:
      return f.template operator()<float, Dtype::kFloat>();
    case Dtype::kDouble:
      return f.template operator()<double, Dtype::kDouble>();
    case Dtype::kBFloat16:
      return f.template operator()<float, Dtype::kBFloat16>();
    case Dtype::kHalf:
      return f.template operator()<float, Dtype::kHalf>();
  }
}

// Calls f.template operator()<T, dtype, Cell>(), a scan's cell being a template over the math policy.
template <class F>
void with_scan(const ScanShape& s, F&& f) {
  with_type(s.dtype, [&]<class T, Dtype kDtype>() {
    s.use_tanh ? f.template operator()<T, kDtype, SruTanhCell>() : f.template operator()<T, kDtype, SruPlainCell>();
  });
}

template <class F>
void with_elementwise(const ElementwiseInputs& in, F&& f) {
  with_type(in.scan.shape.dtype, [&]<class T, Dtype kDtype>() {
    switch (in.cell) {
      case ElementwiseKind::kLinear:
        return f.template operator()<T, kDtype, LinearCell>();
      case ElementwiseKind::kMinGru:
      case ElementwiseKind::kMinGruLog:
        return f.template operator()<T, kDtype, MinGruCell>();
      case ElementwiseKind::kMinLstm:
      case ElementwiseKind::kMinLstmLog:
        return f.template operator()<T, kDtype, MinLstmCell>();
      case ElementwiseKind::kIndRnnTanh:
      case ElementwiseKind::kIndRnnRelu:
        return f.template operator()<T, kDtype, IndRnnCell>();
    }
  });
}

template <template <class, Dtype, template <class> class> class Kernel, class Params>
size_t elementwise_workspace(const Params& params, const ElementwisePlan& plan) {
  size_t bytes = 0;
  with_elementwise(params.in, [&]<class T, Dtype kDtype, template <class> class Cell>() {
    bytes = Kernel<T, kDtype, Cell>(params, plan, nullptr).workspace_bytes();
  });
  return bytes;
}

template <template <class, Dtype, template <class> class> class Kernel, class Params>
void run_elementwise(const Params& params, const ElementwisePlan& plan, char* workspace, const Parallel& parallel) {
  with_elementwise(params.in, [&]<class T, Dtype kDtype, template <class> class Cell>() {
    Kernel<T, kDtype, Cell> kernel(params, plan, workspace);
    parallel.run(kernel.workers(), Kernel<T, kDtype, Cell>::body, &kernel);
    kernel.finish();
  });
}

template <template <class, Dtype, template <class> class> class Kernel, class Params>
size_t scan_workspace(const Params& params, const ScanPlan& plan) {
  size_t bytes = 0;
  with_scan(params.in.shape, [&]<class T, Dtype kDtype, template <class> class Cell>() {
    bytes = Kernel<T, kDtype, Cell>(params, plan, nullptr).workspace_bytes();
  });
  return bytes;
}

template <template <class, Dtype, template <class> class> class Kernel, class Params>
void run_scan(const Params& params, const ScanPlan& plan, char* workspace, const Parallel& parallel) {
  with_scan(params.in.shape, [&]<class T, Dtype kDtype, template <class> class Cell>() {
    Kernel<T, kDtype, Cell> kernel(params, plan, workspace);
    parallel.run(kernel.workers(), Kernel<T, kDtype, Cell>::body, &kernel);
  });
}

int scan_lanes(Dtype dtype) { return dtype == Dtype::kDouble ? Simd<double>::W : Simd<float>::W; }

constexpr ScanKernels make_scan_kernels() {
  return {scan_lanes,
          scan_workspace<ScanForward, ScanForwardParams>,
          run_scan<ScanForward, ScanForwardParams>,
          scan_workspace<ScanBackward, ScanBackwardParams>,
          run_scan<ScanBackward, ScanBackwardParams>,
          elementwise_workspace<ElementwiseForward, ElementwiseForwardParams>,
          run_elementwise<ElementwiseForward, ElementwiseForwardParams>,
          elementwise_workspace<ElementwiseBackward, ElementwiseBackwardParams>,
          run_elementwise<ElementwiseBackward, ElementwiseBackwardParams>};
}

}  // namespace
}  // namespace fastrnn
