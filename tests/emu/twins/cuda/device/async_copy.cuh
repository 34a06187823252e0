// The emulator's copies in place of cp.async.
#pragma once
#include "cuda_on_cpu.h"

namespace fastrnn::cuda {

template <int kBytes>
inline void copy_async(void* shared, const void* global, EMU_LOC) {
  emu::cp_async(emu::to_shared(shared), global, kBytes, loc);
}
inline void commit_copies() { emu::cp_commit(); }
template <int kGroups>
inline void wait_copies() {
  emu::cp_wait(kGroups);
}
#define FASTRNN_DYNAMIC_SHARED(name) SMEM_DYN(unsigned char, name)
#define FASTRNN_SHARED(T, name, dims) SMEM_STATIC(T, name, dims)

}  // namespace fastrnn::cuda
