// Which tier of the CUDA kernels runs a pass of a layer: as plan.h for a GPU, known by its properties alone.
#pragma once
#include "cuda/persistent/persistent.h"
#include "params.h"

namespace fastrnn {

// The tiers of the CUDA kernels, as the ops' argument `mode` numbers them.
enum class CudaTier : int { kAuto = 0, kOneCta = 1, kGrid = 2, kStepwise = 3, kCluster = 4 };
const char* tier_name(CudaTier tier);  // "one_cta" and so on

struct CudaPlan {
  CudaTier tier = CudaTier::kStepwise;
  bool possible = true;  // false: a tier was asked for that cannot take the layer, reason says why
  cuda::Precision precision = cuda::Precision::kFloat32;
  cuda::PersistentGeometry geometry;  // of a persistent tier
  double step_us = 0;                 // microseconds a step: an estimate, see plan_cuda.cpp
  const char* reason = "";
};

// How a layer's products are computed; float64 counts as float32, it never meets a persistent tier.
cuda::Precision cuda_precision(Dtype dtype, bool tf32);

// One pass of a layer on a GPU: the fastest tier by estimate, or the one that is wanted. Forward and backward
// of a layer are planned apart, as they leave the same for each other whatever ran.
CudaPlan plan_cuda(const LayerShape& shape, bool tf32, cuda::Pass pass, const cuda::CudaDevice& device,
                   CudaTier wanted = CudaTier::kAuto);

}  // namespace fastrnn
