// Which tier of the CUDA kernels runs a pass of a layer: as cpu.h for a GPU, known by its properties alone.
#pragma once
#include "params/rnn.h"
#include "plan/geometry.h"

namespace fastrnn {

// Where a plan's time a step comes from: the model alone, the table's timings for another GPU or shape and the model
// for the rest of the way, between timings on this GPU, a timing of this very case on this GPU.
enum class StepSource : int { kModel = 0, kScaled = 1, kInterpolated = 2, kMeasured = 3 };

struct PlanTable;               // table.h
const PlanTable& plan_table();  // the one that is checked in

struct CudaPlan {
  Tier tier = Tier::kStepwise;
  Tier asked = Tier::kAuto;  // by name; a plan that was not asked for may make way for another
  bool possible = true;      // false: a tier was asked for that cannot take the layer, reason says why
  cuda::Precision precision = cuda::Precision::kFloat32;
  cuda::PersistentGeometry geometry;  // of a persistent tier
  bool projects = false;              // the forward kernel makes x's part of the gates itself: no product before it
  int chunks = 1;                     // more: x's product is made in so many, beside the loops of those before
  int64_t graph_bytes = 0;            // of kStepwiseGraph: the copies that a graph keeps
  double step_us = 0;                 // microseconds a step, see cuda.cpp
  StepSource source = StepSource::kModel;
  double model_us = 0;  // what the model alone says
  const char* reason = "";
};

// How a layer's products are computed; float64 counts as float32, it never meets a persistent tier.
cuda::Precision cuda_precision(Dtype dtype, bool tf32);

// Why a layer is for the stepwise tier unless another is asked for by name; null where others are worth asking.
const char* only_stepwise(const LayerShape& shape);

// One pass of a layer on a GPU: the one that is wanted, or the fastest tier by the table, which is no more than an
// estimate and runs nothing: what runs unasked is what a device has proven (trust.h). Forward and backward of a layer
// are planned apart, as they leave the same for each other whatever ran.
CudaPlan plan_cuda(const LayerShape& shape, bool tf32, cuda::Pass pass, const cuda::CudaDevice& device,
                   Tier wanted = Tier::kAuto, const PlanTable& table = plan_table());

}  // namespace fastrnn
