// Where a thread's values lie in global memory, and how it reads and writes them: the two neighbouring units of
// a lane at once where every row starts at a multiple of two elements, else one by one.
#pragma once
#include "ptx.cuh"

namespace fastrnn::cuda {

// A pair of neighbouring values as it lies in memory: prefetched values wait in this form, half types in half
// the registers.
template <class T>
struct Pair {
  using Raw = std::conditional_t<sizeof(T) == 4, uint2, uint32_t>;
  Raw raw;

  __device__ __forceinline__ float operator[](int i) const {
    T values[2];
    memcpy(values, &raw, sizeof raw);
    return load(&values[i]);
  }
};

template <class T>
__device__ __forceinline__ Pair<T> pair_of(float first, float second) {
  T values[2];
  store(&values[0], first);
  store(&values[1], second);
  Pair<T> pair;
  memcpy(&pair.raw, values, sizeof pair.raw);
  return pair;
}

// `count` of the two exist (2, 1 where the layer ends between them, or 0), the others are zero. `whole`: the
// address is aligned to a pair whenever count is 2.
template <class T>
__device__ __forceinline__ Pair<T> load_pair(const T* p, int count, bool whole) {
  Pair<T> pair;
  if (whole && count == 2) {
    pair.raw = *reinterpret_cast<const typename Pair<T>::Raw*>(p);
  } else {
    const float first = count > 0 ? load(p) : 0.0f, second = count > 1 ? load(p + 1) : 0.0f;
    pair = pair_of<T>(first, second);
  }
  return pair;
}
template <class T>
__device__ __forceinline__ void store_pair(T* p, const Pair<T>& pair, int count, bool whole) {
  if (whole && count == 2) {
    *reinterpret_cast<typename Pair<T>::Raw*>(p) = pair.raw;
    return;
  }
  if (count > 0) store(p, pair[0]);
  if (count > 1) store(p + 1, pair[1]);
}

// The rows of one step in a direction's own time: `count` from row `first` of the direction's N. None outside
// of 0 <= s < T.
struct StepOf {
  int64_t first;
  int count;
};

struct Schedule {
  const int64_t* row_offsets;
  const int64_t* batch_sizes;
  int T;
  int64_t B;
  int direction;

  __device__ __forceinline__ StepOf at(int s) const {
    if (s < 0 || s >= T) return {0, 0};
    const int64_t t = direction ? T - 1 - s : s;
    if (batch_sizes) return {row_offsets[t], static_cast<int>(batch_sizes[t])};
    return {t * B, static_cast<int>(B)};
  }
};

}  // namespace fastrnn::cuda
