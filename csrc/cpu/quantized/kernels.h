// The kernels of quantized layers of one instruction set, as isa/table.h has those of the others: the files of isa/
// compile kernels.inl once each.
#pragma once
#include "cpu/team.h"
#include "params/quantized.h"
#include "plan/cpu.h"

namespace fastrnn {

struct QuantizedKernels {
  // Bytes of scratch that the caller must provide (64-byte aligned), then the kernel itself.
  size_t (*workspace)(const QuantizedParams& params, const CpuPlan& plan);
  void (*run)(const QuantizedParams& params, const CpuPlan& plan, char* workspace, const Parallel& parallel);
};

extern const QuantizedKernels kBaselineQuantized;
#if defined(__x86_64__)
extern const QuantizedKernels kAvx2Quantized;
extern const QuantizedKernels kAvx512Quantized;
#elif defined(__aarch64__)
extern const QuantizedKernels kNeonQuantized;
#endif

}  // namespace fastrnn
