// What device code stands on: CUDA's headers. tests/emu/twins has a file of this name for the emulator, which runs
// the same kernels with g++ and comes first on its include path; so it is with every header that names its twin.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
