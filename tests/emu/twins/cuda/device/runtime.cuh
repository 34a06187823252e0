// The emulator in place of CUDA's headers.
#pragma once
#include "cuda_on_cpu.h"
