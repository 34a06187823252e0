// Which instruction set runs: the best that this machine has, or the one that was asked for.
#pragma once
#include <string>
#include <vector>

#include "cpu/isa/table.h"

namespace fastrnn {

std::vector<const KernelTable*> runnable_kernels();        // best first
const KernelTable* find_kernels(const std::string& name);  // null: not here
void use_kernels(const KernelTable& table);                // by calls that start afterwards

// What the plan takes of a table's kernels.
inline CpuMachine machine_of(const KernelTable& kernels, Dtype dtype, int threads) {
  return {.threads = threads, .lanes = kernels.lanes(dtype), .tile_rows = kernels.tile_rows};
}

}  // namespace fastrnn
