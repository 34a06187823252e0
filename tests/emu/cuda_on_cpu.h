// Runs CUDA kernels' own source on the CPU, one fiber per CUDA thread, to test kernel logic without a GPU.
// Compile with g++ -std=c++20 -x c++ and tests/emu/twins before csrc; x86-64 has a fast path, others go through
// ucontext.
//
// Model. All co-resident blocks of a launch share one OS thread. A fiber runs until it meets a
// synchronising operation (barrier, warp collective, mbarrier wait, polling load, atomic). The warp is the
// unit of scheduling: the runnable warp of highest priority goes next; priorities are redrawn at random,
// often (shuffle) or seldom (one warp runs far ahead of the rest), by the seed. Asynchronous copies
// (st.async, cp.async) land one by one in random order: at once, after a random delay, or only when
// nothing else can run. Launches are synchronous; grids and blocks are one-dimensional.
//
// Errors are thrown as emu::Error from the launch: deadlock (with who waits where), unequal barrier
// participation, divergent warp collectives, mbarrier misuse (tx left over at exit, tx range, unarmed or
// repeated-phase waits, use before init), st.async to an exited block or outside its shared memory, shared
// address of something that is not shared memory, any access to a guard page behind shared memory or an
// emu::dev_alloc buffer. Fresh memory is filled with NaN. With EMU_RACE: unordered accesses (emu_race.h).
//
// Not found: memory order and proxies (memory is sequentially consistent here, fences do nothing), errors
// in the text of inline assembly (host twins replace it), reordering by nvcc, non-coherent loads, lane
// divergence at .aligned instructions other than warp collectives, bank conflicts, registers, occupancy,
// the accuracy of approximate instructions, overruns between static shared variables.
#pragma once
#include "emu_builtins.h"
