// How a function is marked that runs on every device. By itself: parameter structs are read before an instruction set
// is chosen, and a template of the cells that was would not be compiled for it.
#pragma once

#ifdef __CUDACC__
#define FASTRNN_HD __host__ __device__ __forceinline__
#else
#define FASTRNN_HD __attribute__((always_inline)) inline
#endif
