// The kernels of one instruction set, as a table of function pointers. The files beside it compile the same
// sources once each; choose.cpp picks one.
#pragma once
#include "cpu/scan/kernels.h"
#include "cpu/team.h"
#include "params/scan.h"
#include "plan/cpu.h"
#include "plan/scan.h"

namespace fastrnn {

struct KernelTable {
  const char* name;
  bool (*runs_here)();
  int (*lanes)(Dtype dtype);
  int tile_rows;
  // Bytes of scratch that the caller must provide (64-byte aligned), then the kernel itself.
  size_t (*forward_workspace)(const ForwardParams& params, const CpuPlan& plan);
  void (*forward)(const ForwardParams& params, const CpuPlan& plan, char* workspace, const Parallel& parallel);
  // Bytes that one direction's weights take when they are packed for ForwardParams::packed, then the packing.
  size_t (*packed_bytes)(const LayerShape& shape);
  void (*pack)(const LayerShape& shape, const DirectionWeights& weights, char* to);
  size_t (*backward_workspace)(const BackwardParams& params, const CpuPlan& plan);
  void (*backward)(const BackwardParams& params, const CpuPlan& plan, char* workspace, const Parallel& parallel);
  size_t (*gate_product_workspace)(const GateProductParams& params, int workers);
  void (*gate_product)(const GateProductParams& params, int workers, char* workspace, const Parallel& parallel);
  size_t (*slstm_forward_workspace)(const SlstmForwardParams& params, const SlstmPlan& plan);
  void (*slstm_forward)(const SlstmForwardParams& params, const SlstmPlan& plan, char* workspace,
                        const Parallel& parallel);
  size_t (*slstm_backward_workspace)(const SlstmBackwardParams& params, const SlstmPlan& plan);
  void (*slstm_backward)(const SlstmBackwardParams& params, const SlstmPlan& plan, char* workspace,
                         const Parallel& parallel);
  double (*fma_loop)(int64_t iterations);                                  // returns flops done
  double (*read_loop)(const float* data, int64_t count, int64_t repeats);  // returns bytes read
  double (*cell_loop)(CellKind cell, int64_t iterations);                  // returns units done, float32
  const ScanKernels* scan;
};

extern const KernelTable kBaselineKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512Bf16Kernels;
#if defined(__linux__)
extern const KernelTable kAmxKernels;
#endif
#elif defined(__aarch64__)
extern const KernelTable kNeonKernels;
extern const KernelTable kNeonBf16Kernels;
#endif

// The table that calls use which start now (choose.cpp).
const KernelTable& kernels_in_use();

}  // namespace fastrnn
