// The fast forms of exp2 and 1/x, each with its twin for the host.
#pragma once
#include "cuda/device/types.cuh"

namespace fastrnn::cuda {

// 2^x and 1/x to about 2^-22, subnormals as zero. Where the emulator runs them, as wrong as PTX allows.
FASTRNN_HD float fast_exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x) * (1.0f + 0x1p-22f);
#endif
}
FASTRNN_HD float fast_reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x * (1.0f + 0x1p-23f);
#endif
}

}  // namespace fastrnn::cuda
