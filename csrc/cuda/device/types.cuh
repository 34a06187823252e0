// The number types of device code and the math policy of the cells.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cells/cell.h"
#include "cuda/device/runtime.cuh"

namespace fastrnn::cuda {

// State, gates and gradients are computed in float for the half types, in the layer's own type otherwise.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float load(const float* p) { return *p; }
__device__ __forceinline__ double load(const double* p) { return *p; }
__device__ __forceinline__ float load(const __half* p) { return __half2float(*p); }
__device__ __forceinline__ float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }

__device__ __forceinline__ void store(float* p, float v) { *p = v; }
__device__ __forceinline__ void store(double* p, double v) { *p = v; }
__device__ __forceinline__ void store(__half* p, float v) { *p = __float2half_rn(v); }
__device__ __forceinline__ void store(__nv_bfloat16* p, float v) { *p = __float2bfloat16_rn(v); }

// Two neighbouring values of a half type, rounded by one instruction.
template <class T>
__device__ __forceinline__ auto both_of(float first, float second) {
  if constexpr (std::is_same_v<T, __half>) {
    return __floats2half2_rn(first, second);
  } else {
    return __floats2bfloat162_rn(first, second);
  }
}

// The math policy of csrc/cells for a thread that owns one unit. The precise functions, not the fast
// intrinsics: a kernel of the stepwise tier waits for memory and launches, never for arithmetic.
template <class A>
struct ScalarMath {
  using V = A;
  static FASTRNN_HD V set(double v) { return static_cast<V>(v); }
  static FASTRNN_HD V exp_(V v) {
    if constexpr (std::is_same_v<V, float>) {
      return expf(v);
    } else {
      return exp(v);
    }
  }
  static FASTRNN_HD V sigmoid(V v) { return V(1) / (V(1) + exp_(-v)); }
  static FASTRNN_HD V tanh(V v) {
    if constexpr (std::is_same_v<V, float>) {
      return ::tanhf(v);
    } else {
      return ::tanh(v);
    }
  }
  static FASTRNN_HD V relu(V v) { return v < V(0) ? V(0) : v; }  // NaN stays NaN, as in torch
  static FASTRNN_HD V positive_mask(V v, V d) { return v <= V(0) ? V(0) : d; }
};

}  // namespace fastrnn::cuda
