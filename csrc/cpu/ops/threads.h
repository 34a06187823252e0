// How many threads a kernel may divide its work over.
#pragma once
#include <cstdint>

namespace fastrnn {

// torch's number of threads, and no more than there are CPUs for them: threads that share a CPU meet at a barrier
// only as often as the system lets each of them run.
int usable_threads();

// Runs body(begin, end, context) over [0, workers) on torch's threads, as Parallel (cpu/team.h) says, each on a CPU
// of its own where the system has put two of them on one.
void run_on_cpus_of_their_own(int64_t workers, void (*body)(int64_t begin, int64_t end, void* context),
                              void* context);

}  // namespace fastrnn
