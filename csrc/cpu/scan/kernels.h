// The scan kernels of one instruction set, as isa/table.h has those of the other layers: isa/*_scan.cpp
// compile kernels.inl once each.
#pragma once
#include "cpu/team.h"
#include "params/elementwise.h"
#include "plan/scan.h"

namespace fastrnn {

struct ScanKernels {
  int (*lanes)(Dtype dtype);
  // Bytes of scratch that the caller must provide (64-byte aligned), then the kernel itself.
  size_t (*forward_workspace)(const ScanForwardParams& params, const ScanPlan& plan);
  void (*forward)(const ScanForwardParams& params, const ScanPlan& plan, char* workspace, const Parallel& parallel);
  size_t (*backward_workspace)(const ScanBackwardParams& params, const ScanPlan& plan);
  void (*backward)(const ScanBackwardParams& params, const ScanPlan& plan, char* workspace, const Parallel& parallel);
  // The same of the recurrences of cells/elementwise.h.
  size_t (*elementwise_forward_workspace)(const ElementwiseForwardParams& params, const ElementwisePlan& plan);
  void (*elementwise_forward)(const ElementwiseForwardParams& params, const ElementwisePlan& plan, char* workspace,
                              const Parallel& parallel);
  size_t (*elementwise_backward_workspace)(const ElementwiseBackwardParams& params, const ElementwisePlan& plan);
  void (*elementwise_backward)(const ElementwiseBackwardParams& params, const ElementwisePlan& plan, char* workspace,
                               const Parallel& parallel);
};

extern const ScanKernels kBaselineScan;
#if defined(__x86_64__)
extern const ScanKernels kAvx2Scan;
extern const ScanKernels kAvx512Scan;
extern const ScanKernels kAvx512Bf16Scan;
#elif defined(__aarch64__)
extern const ScanKernels kNeonScan;
#endif

}  // namespace fastrnn
