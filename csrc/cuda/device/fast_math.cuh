// The fast forms of exp2 and 1/x, each with its twin for the host.
#pragma once
#include "cuda/device/types.cuh"

namespace fastrnn::cuda {

// 2^x and 1/x to about 2^-22, subnormals as zero.
FASTRNN_HD float fast_exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
FASTRNN_HD float fast_reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

}  // namespace fastrnn::cuda
