// The quantized kernels that go with a table of the others, and what its processor has for them.
#pragma once
#include "cpu/isa/table.h"
#include "cpu/quantized/kernels.h"

namespace fastrnn {

const QuantizedKernels& quantized_kernels(const KernelTable& table);
// Whether there is an instruction for products of int8 that they know: AVX512-VNNI, AVX-VNNI, Arm's SDOT.
bool has_int8_dot(const KernelTable& table);

}  // namespace fastrnn
