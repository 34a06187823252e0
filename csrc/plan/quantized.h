// How a layer with weights of low precision (cpu/quantized) is cut up; as cpu.h for the others.
#pragma once
#include "plan/cpu.h"

namespace fastrnn {

// int8, or bfloat16. Only units and directions are split.
CpuPlan plan_quantized(const LayerShape& shape, bool int8, const CpuMachine& machine);

}  // namespace fastrnn
