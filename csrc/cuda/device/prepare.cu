#include "cuda/device/prepare.h"

#include "cuda/device/tiling.cuh"

namespace fastrnn::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kBlock)
    combine_bias_kernel(int64_t H, int G, bool split, const T* b_ih, const T* b_hh, Compute<T>* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= G * H) return;
  if (split && i >= (G - 1) * H) {
    out[i] = load(b_ih + i);
    out[i + H] = load(b_hh + i);
  } else {
    out[i] = load(b_ih + i) + load(b_hh + i);
  }
}

template <class Bits>
__global__ void __launch_bounds__(kBlock)
    clear_padding_kernel(const RowTable table, int64_t rows, Bits* data, const Tiling tiling) {
  const Place at = locate(tiling);
  if (at.unit >= tiling.units || at.row >= rows) return;
  const int64_t t = at.row / table.B;
  if (table.runs(t, at.row - t * table.B)) return;
  data[(at.direction * rows + at.row) * tiling.units + at.unit] = 0;
}

}  // namespace

int combine_bias(const StepShape& shape, const void* b_ih, const void* b_hh, void* out, void* stream) {
  return with_type(shape.dtype, [&]<class T>(TypeTag<T>) {
    const int G = gates_of(shape.cell);
    return launch(combine_bias_kernel<T>, (G * shape.H + kBlock - 1) / kBlock, kBlock, stream, shape.H, G,
                  facts_of(shape.cell).split, static_cast<const T*>(b_ih), static_cast<const T*>(b_hh),
                  static_cast<Compute<T>*>(out));
  });
}

int clear_padding(const RowTable& table, int64_t T, int D, int64_t width, size_t element, void* data, void* stream) {
  const auto clear = [&]<class Bits>(Bits* bits) {
    return launch_rows(clear_padding_kernel<Bits>, T * table.B, width, D, stream, table, T * table.B, bits);
  };
  return element == 2   ? clear(static_cast<uint16_t*>(data))
         : element == 4 ? clear(static_cast<uint32_t*>(data))
                        : clear(static_cast<uint64_t*>(data));
}

}  // namespace fastrnn::cuda
