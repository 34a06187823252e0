// How many threads a kernel may divide its work over.
#pragma once

namespace fastrnn {

// torch's number of threads, and no more than there are CPUs for them: threads that share a CPU meet at a barrier
// only as often as the system lets each of them run.
int usable_threads();

}  // namespace fastrnn
