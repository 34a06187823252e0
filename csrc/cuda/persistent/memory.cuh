// Where a thread's values lie in global memory, and how it reads and writes them: the two neighbouring units of
// a lane at once where every row starts at a multiple of two elements, else one by one.
#pragma once
#include "cuda/persistent/ptx.cuh"

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

// Half types are rounded two at a time, by one instruction.
template <class T>
__device__ __forceinline__ Pair<T> pair_of(float first, float second) {
  Pair<T> pair;
  if constexpr (std::is_same_v<T, float>) {
    pair.raw = make_uint2(__float_as_uint(first), __float_as_uint(second));
  } else {
    const auto both = both_of<T>(first, second);
    static_assert(sizeof both == sizeof pair.raw);
    memcpy(&pair.raw, &both, sizeof pair.raw);
  }
  return pair;
}

// `count` of the two exist (2, 1 where the layer ends between them, or 0), the others are zero. `whole`: the
// address is aligned to a pair whenever count is 2.
template <class T>
__device__ __forceinline__ Pair<T> load_pair(const T* p, int count, bool whole) {
  Pair<T> pair;
  if (whole && count == 2) {
    pair.raw = load_vector(reinterpret_cast<const typename Pair<T>::Raw*>(p));
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
  T values[2];  // as they were rounded
  memcpy(values, &pair.raw, sizeof pair.raw);
  if (count > 0) p[0] = values[0];
  if (count > 1) p[1] = values[1];
}

// Step t, at which batch row b is row first + b of the direction's N. No row runs at t = -1.
struct StepOf {
  int64_t first;
  int t;
};

// The steps in a direction's own time: -1 outside of 0 <= s < T.
struct Schedule {
  const int64_t* row_offsets;
  int T;
  int64_t B;
  int direction;

  __device__ __forceinline__ StepOf at(int s) const {
    if (s < 0 || s >= T) return {0, -1};
    const int t = direction ? T - 1 - s : s;
    return {row_offsets ? row_offsets[t] : t * B, t};
  }
};

// A lane's two rows, at.row + j. Row j runs at the steps below lengths[j], in both directions; one that does not
// exist has length 0.
struct LaneRows {
  int lengths[2];

  __device__ __forceinline__ LaneRows(const int64_t* of_rows, int T, int64_t B, int row) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      lengths[j] = row + j >= B ? 0 : of_rows ? static_cast<int>(of_rows[row + j]) : T;
    }
  }
  __device__ __forceinline__ bool run(const StepOf& step, int j) const {
    return static_cast<unsigned>(step.t) < static_cast<unsigned>(lengths[j]);
  }
  // Bit j: row j begins a new sequence at this step of the direction's own time, so that nothing of its state
  // before comes in. resets (T,B) is set where no state passes between t-1 and t, in either direction; a step that
  // a row does not take resets nothing.
  __device__ __forceinline__ int begin(const uint8_t* resets, const StepOf& step, int64_t B, int row,
                                       int direction) const {
    int found = 0;
    if (resets) {
      const int t = step.t + direction;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (static_cast<unsigned>(t) < static_cast<unsigned>(lengths[j]) && resets[t * B + row + j]) found |= 1 << j;
      }
    }
    return found;
  }
};

}  // namespace fastrnn::cuda
