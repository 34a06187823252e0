// Whether this processor can run an instruction set's kernels (processor.cpp); Arm's is asked in arm.h.
#pragma once

namespace fastrnn {

bool has_avx2();
bool has_avx512();
bool has_avx512_bf16();

}  // namespace fastrnn
