// How a layer is cut up for a persistent tier (cuda/persistent/params.h says what those are). No CUDA here: the
// plan of a GPU can be asked for on any machine.
#pragma once
#include <cstdint>

#include "cells/list.h"
#include "params/mode.h"
#include "plan/device.h"

namespace fastrnn::cuda {

// How a layer is cut for a tier, and whether it can be at all.
struct PersistentGeometry {
  bool fits = false;
  const char* reason = "";  // why it does not fit; empty where it does
  CellKind cell = CellKind::kLstm;
  Precision precision = Precision::kFloat32;
  Tier tier = Tier::kOneCta;
  Pass pass = Pass::kForward;
  int64_t H = 0, B = 0;
  int D = 0;
  int unit_tiles = 0;           // ceil(H/16)
  int ctas_per_replica = 0;     // that together hold one direction's weights
  int replicas = 0;             // of one direction, each for its own rows
  int ctas = 0;                 // ctas_per_replica * replicas * D: the grid
  int units_per_cta = 0;        // of ctas_per_replica * units_per_cta >= H
  int k_split = 0;              // warps that share a tile of units: its products by K; cluster, backward: its rows
  int k_more = 0;               // cluster, forward: the first so many of a CTA's tiles of units have a warp more
  int peers = 0;                // cluster: CTAs of a cluster that have units; the others leave at once
  int n_tiles = 0;              // tiles of 8 rows a replica
  int copies_ahead = 0;         // grid: pieces of the operand on their way into shared memory at once: 1, 2 or 4
  int threads = 0;              // a CTA
  int64_t shared_bytes = 0;     // dynamic, a CTA
  int64_t workspace_bytes = 0;  // of Persistent{Forward,Backward}::workspace; 0: none needed
};

// Pure: the same arguments give the same answer on every machine. Never fits: P > 0 (not asked here), B = 0,
// a device below compute capability 8.0. kFloat32 and kTf32 are for Dtype::kFloat, the others for their type.
// `cluster`: CTAs of a cluster, for the cluster tier alone.
PersistentGeometry geometry(CellKind cell, Precision precision, Tier tier, int64_t H, int64_t B, int D, Pass pass,
                            const CudaDevice& device, int cluster = 0);

}  // namespace fastrnn::cuda
