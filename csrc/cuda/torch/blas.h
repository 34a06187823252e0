// The cuBLAS that torch has loaded, for the products of gemm.h. The emulator has a twin of this file.
#pragma once
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>

#include <string>

#include "cuda/torch/gemm.h"

namespace fastrnn::cuda {

// The few functions of cuBLAS, found in the library that is already loaded.
class Blas {
 public:
  static const Blas& get() {
    static const Blas blas;
    return blas;
  }
  bool found() const { return product_ && set_math_mode_; }

  void operator()(const Gemm& g, bool tf32) const {
    void* handle = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
    // CUBLAS_TF32_TENSOR_OP_MATH, CUBLAS_DEFAULT_MATH
    check(set_math_mode_(handle, tf32 ? 3 : 0), "cublasSetMathMode");
    const float one = 1, beta = g.add ? 1 : 0;
    const int kFloat = 0, kCompute32F = 68, kDefaultAlgorithm = -1;  // CUDA_R_32F, CUBLAS_COMPUTE_32F, …
    const auto narrow = [](int64_t n) { return static_cast<int>(n); };
    check(product_(handle, g.a.transposed, g.b.transposed, narrow(g.m), narrow(g.n), narrow(g.k), &one, g.a.data,
                   kFloat, narrow(g.a.ld), g.a.distance, g.b.data, kFloat, narrow(g.b.ld), g.b.distance, &beta,
                   g.c.data, kFloat, narrow(g.c.ld), g.c.distance, narrow(g.batch), kCompute32F, kDefaultAlgorithm),
          "cublasGemmStridedBatchedEx");
  }

 private:
  // Enumerations are ints there: status, operation (0 as it is, 1 transposed), types.
  using SetMathMode = int (*)(void*, int);
  using Product = int (*)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                          int a_type, int lda, long long a_distance, const void* b, int b_type, int ldb,
                          long long b_distance, const void* beta, void* c, int c_type, int ldc, long long c_distance,
                          int batch, int compute_type, int algorithm);

  Blas() {
    const std::string name = "libcublas.so." + std::to_string(CUDART_VERSION / 1000);
    void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return;
    set_math_mode_ = reinterpret_cast<SetMathMode>(dlsym(library, "cublasSetMathMode"));
    product_ = reinterpret_cast<Product>(dlsym(library, "cublasGemmStridedBatchedEx"));
  }
  static void check(int status, const char* function) {
    STD_TORCH_CHECK(status == 0, function, " returned ", status);
  }

  SetMathMode set_math_mode_ = nullptr;
  Product product_ = nullptr;
};

inline bool blas_available() { return Blas::get().found(); }
inline void run_product(const Gemm& g, bool tf32) { Blas::get()(g, tf32); }

}  // namespace fastrnn::cuda
