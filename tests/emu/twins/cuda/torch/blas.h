// The emulator's cuBLAS: the product as BLAS understands its arguments, in plain loops.
#pragma once
#include <cstdint>
#include <cstring>

#include "cuda/torch/gemm.h"
#include "cuda/torch/runtime.h"

namespace fastrnn::cuda {

// As the tensor cores round: 10 bits of mantissa, ties away from zero.
inline float to_tf32(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof v);
  if ((bits >> 23 & 0xff) != 0xff) bits = (bits + 0x1000) & ~0x1fffu;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline double value_at(const void* data, int64_t i, torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  return type == ScalarType::Double     ? static_cast<const double*>(data)[i]
         : type == ScalarType::Float    ? static_cast<const float*>(data)[i]
         : type == ScalarType::BFloat16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i])
                                        : __half2float(static_cast<const __half*>(data)[i]);
}
inline void store_at(void* data, int64_t i, torch::headeronly::ScalarType type, double v) {
  using torch::headeronly::ScalarType;
  const float narrow = static_cast<float>(v);
  if (type == ScalarType::Double) static_cast<double*>(data)[i] = v;
  if (type == ScalarType::Float) static_cast<float*>(data)[i] = narrow;
  if (type == ScalarType::BFloat16) static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16(narrow);
  if (type == ScalarType::Half) static_cast<__half*>(data)[i] = __float2half_rn(narrow);
}
inline bool blas_available() { return emu::opt.blas; }
inline void compute_product(const Gemm& g, bool tf32) {
  const auto at = [&](const Gemm::Matrix& m, int64_t batch, int64_t row, int64_t column) {
    const int64_t i = batch * m.distance + (m.transposed ? column + row * m.ld : row + column * m.ld);
    const double v = value_at(m.data, i, g.type);
    return tf32 ? to_tf32(static_cast<float>(v)) : v;
  };
  for (int64_t batch = 0; batch < g.batch; ++batch) {
    for (int64_t j = 0; j < g.n; ++j) {
      for (int64_t i = 0; i < g.m; ++i) {
        double sum = 0;
        for (int64_t k = 0; k < g.k; ++k) sum += at(g.a, batch, i, k) * at(g.b, batch, k, j);
        const int64_t out = batch * g.c.distance + i + j * g.c.ld;
        store_at(g.c.data, out, g.out_type, g.add ? value_at(g.c.data, out, g.out_type) + sum : sum);
      }
    }
  }
}
inline void run_product(const Gemm& g, bool tf32) {
  on_stream([=] { compute_product(g, tf32); });
}

// A handle of our own: its products use their workspace while they run.
class OwnBlas {
 public:
  void set(void* stream, void* workspace, size_t bytes, bool tf32) {
    stream_ = stream;
    workspace_ = static_cast<uint8_t*>(workspace);
    bytes_ = bytes;
    tf32_ = tf32;
  }
  void operator()(const Gemm& g) const {
    emu::submit(stream_, emu::Work([g, tf32 = tf32_, workspace = workspace_, bytes = bytes_] {
                  workspace[0] = workspace[bytes - 1] = 0;
                  compute_product(g, tf32);
                }));
  }

 private:
  void* stream_ = nullptr;
  uint8_t* workspace_ = nullptr;
  size_t bytes_ = 0;
  bool tf32_ = false;
};

}  // namespace fastrnn::cuda
