// What a time step costs on a GPU, tier by tier: a table from a sweep's timings, and how to read between its points.
// The table in use is table.inl, which benchmarks/plan_table.py writes.
#pragma once
#include <string>
#include <vector>

#include "plan/cuda.h"

namespace fastrnn {

// Costs of one tier, cell, precision and pass at one H: us[i] microseconds a step at the table's batches[i], 0 where
// there is no timing. One layer, one direction, the input projection included.
struct PlanRow {
  Tier tier;
  CellKind cell;  // kRnnTanh stands for both
  cuda::Precision precision;
  cuda::Pass pass;
  int64_t H;
  std::vector<double> us;
};

struct PlanTable {
  bool measured = false;   // false: the model's estimates
  std::string provenance;  // device, driver, torch, commit, date
  cuda::CudaDevice device;
  int64_t steps = 0;               // T of every timing
  std::vector<int64_t> batches;    // ascending
  std::vector<PlanRow> rows = {};  // ascending by tier, cell, precision, pass, H
};

const PlanTable& plan_table();

// Linear in the logarithms, first over B in the rows to both sides of H, then over H; beyond the outermost points
// like them, which moves H and B to where the answer holds. `found`: that is a point of the table. 0 where it has no
// row of that kind.
double table_us(const PlanTable& table, Tier tier, CellKind cell, cuda::Precision precision, cuda::Pass pass,
                int64_t& H, int64_t& B, bool& found);

}  // namespace fastrnn
