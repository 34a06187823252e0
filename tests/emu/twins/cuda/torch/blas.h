// The emulator's cuBLAS: the product as BLAS understands its arguments, in plain loops.
#pragma once
#include <cstdint>
#include <cstring>

#include "cuda/torch/gemm.h"

namespace fastrnn::cuda {

// As the tensor cores round: 10 bits of mantissa, ties away from zero.
inline float to_tf32(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof v);
  if ((bits >> 23 & 0xff) != 0xff) bits = (bits + 0x1000) & ~0x1fffu;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline bool blas_available() { return true; }
inline void run_product(const Gemm& g, bool tf32) {
  const auto at = [&](const Gemm::Matrix& m, int64_t batch, int64_t row, int64_t column) {
    const float v = m.data[batch * m.distance + (m.transposed ? column + row * m.ld : row + column * m.ld)];
    return tf32 ? to_tf32(v) : v;
  };
  for (int64_t batch = 0; batch < g.batch; ++batch) {
    for (int64_t j = 0; j < g.n; ++j) {
      for (int64_t i = 0; i < g.m; ++i) {
        double sum = 0;
        for (int64_t k = 0; k < g.k; ++k) sum += double(at(g.a, batch, i, k)) * at(g.b, batch, k, j);
        float& out = g.c.data[batch * g.c.distance + i + j * g.c.ld];
        out = static_cast<float>(g.add ? out + sum : sum);
      }
    }
  }
}

}  // namespace fastrnn::cuda
