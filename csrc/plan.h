// Which kernel runs a layer and how it is cut up: a pure function of shapes and machine, so that it
// can be shown to the user (fastrnn.explain) and tested without the machine.
#pragma once
#include "cuda/persistent/persistent.h"
#include "params.h"

namespace fastrnn {

struct CpuMachine {
  int threads = 1;
  int lanes = 16;     // lanes of a vector register in the compute dtype
  int tile_rows = 6;  // rows of a full register tile
};

struct CpuPlan {
  int batch_groups = 1;        // workers that split the batch; they never wait for each other
  int unit_groups = 1;         // workers that split the hidden units; a barrier a step
  int direction_groups = 1;    // 2: the directions run at the same time
  int64_t forward_chunk = 1;   // steps whose input projection is computed at once
  int64_t backward_chunk = 1;  // steps whose weight gradients are computed at once
  bool direct = false;         // too few rows to repay packing: weights are read where they lie
  const char* reason = "";
};

CpuPlan plan_cpu(const LayerShape& shape, const CpuMachine& machine);

// The tiers of the CUDA kernels, as the ops' argument `mode` numbers them.
enum class CudaTier : int { kAuto = 0, kOneCta = 1, kGrid = 2, kStepwise = 3 };
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
