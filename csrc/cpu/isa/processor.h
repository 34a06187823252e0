// Whether this processor can run an instruction set's kernels (processor.cpp); Arm's is asked in arm.h.
#pragma once

namespace fastrnn {

bool has_avx2();
bool has_avx512();
bool has_avx512_bf16();
// Asks the system for the permission to use tiles, too, which a process then has for good.
bool may_use_amx();  // Linux

}  // namespace fastrnn
