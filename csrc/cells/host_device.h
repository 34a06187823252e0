// How a function is marked that several files share, by where it runs.
//
// Always inline: of an ordinary inline function the linker keeps one copy for all files, and where that came from a
// file compiled for AVX-512, processors without it would crash in everybody's.
#pragma once

// On the host alone.
#define FASTRNN_INLINE __attribute__((always_inline)) inline
// On every device.
#ifdef __CUDACC__
#define FASTRNN_HD __host__ __device__ __forceinline__
#else
#define FASTRNN_HD FASTRNN_INLINE
#endif
