// How a scan on the CPU is shared out among threads: as cpu.h for the recurrences without a product.
#pragma once
#include "params/elementwise.h"
#include "params/slstm.h"

namespace fastrnn {

// How the columns (rows of the batch x features) are shared out. They never wait for each other.
struct ScanPlan {
  int batch_groups = 1;
  int unit_groups = 1;
  bool stream = false;  // results go past the caches
  FASTRNN_INLINE int workers() const { return batch_groups * unit_groups; }
};

// The same of a recurrence that is linear in its state: where there are fewer columns than threads, each share of
// them is walked through by several workers, who have a part of the steps each.
struct ElementwisePlan : ScanPlan {
  int time_groups = 1;
  FASTRNN_INLINE int all_workers() const { return workers() * time_groups; }
};

// An sLSTM's heads and rows never wait for each other.
struct SlstmPlan {
  int batch_groups = 1;
  int head_groups = 1;
  FASTRNN_INLINE int workers() const { return batch_groups * head_groups; }
};

// result_bytes: of everything that the kernel writes. l3_bytes: the last cache's.
ScanPlan plan_scan(const ScanShape& shape, int64_t result_bytes, int threads, int64_t l3_bytes = 32 << 20);

ElementwisePlan plan_elementwise(const ElementwiseInputs& in, int64_t result_bytes, int threads,
                                 int64_t l3_bytes = 32 << 20);

SlstmPlan plan_slstm(const SlstmShape& shape, int threads);

// Workers for the product that gives a single step its gates.
int gate_product_threads(const GateProductParams& params, int threads);

}  // namespace fastrnn
