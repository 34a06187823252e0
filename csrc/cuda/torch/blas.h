// The cuBLAS that torch has loaded, for the products of gemm.h: with torch's handle, and with one of our own. The
// emulator has a twin of this file.
#pragma once
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>

#include <string>

#include "cuda/torch/gemm.h"
#include "cuda/torch/runtime.h"

namespace fastrnn::cuda {

// The few functions of cuBLAS, found in the library that is already loaded.
class Blas {
 public:
  static const Blas& get() {
    static const Blas blas;
    return blas;
  }
  bool found() const { return product_ && set_math_mode_ && create_ && set_stream_ && set_workspace_; }

  void operator()(const Gemm& g, bool tf32) const {
    void* handle = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
    set_math_mode(handle, tf32 ? kTf32Math : kDefaultMath);
    multiply(handle, g);
  }

  void multiply(void* handle, const Gemm& g) const {
    const float one = 1, beta = g.add ? 1 : 0;
    const double one_double = 1, beta_double = beta;
    const bool wide = g.type == ScalarType::Double;
    const void* const alpha = wide ? static_cast<const void*>(&one_double) : &one;
    const void* const old = wide ? static_cast<const void*>(&beta_double) : &beta;
    const int type = type_of(g.type), out_type = type_of(g.out_type);
    const auto narrow = [](int64_t n) { return static_cast<int>(n); };
    check(
        product_(handle, g.a.transposed, g.b.transposed, narrow(g.m), narrow(g.n), narrow(g.k), alpha, g.a.data, type,
                 narrow(g.a.ld), g.a.distance, g.b.data, type, narrow(g.b.ld), g.b.distance, old, g.c.data, out_type,
                 narrow(g.c.ld), g.c.distance, narrow(g.batch), wide ? kCompute64F : kCompute32F, kDefaultAlgorithm),
        "cublasGemmStridedBatchedEx");
  }

  void* create() const {
    void* handle = nullptr;
    check(create_(&handle), "cublasCreate");
    return handle;
  }
  void set_math_mode(void* handle, int mode) const { check(set_math_mode_(handle, mode), "cublasSetMathMode"); }
  // The stream first, which takes the workspace away.
  void set_stream(void* handle, void* stream, void* workspace, size_t bytes) const {
    check(set_stream_(handle, stream), "cublasSetStream");
    check(set_workspace_(handle, workspace, bytes), "cublasSetWorkspace");
  }

  // CUBLAS_DEFAULT_MATH, CUBLAS_TF32_TENSOR_OP_MATH, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
  static constexpr int kDefaultMath = 0, kTf32Math = 3, kWideSumsMath = 16;

 private:
  // Enumerations are ints there: status, operation (0 as it is, 1 transposed), types.
  using SetMathMode = int (*)(void*, int);
  using Create = int (*)(void**);
  using SetStream = int (*)(void*, void*);
  using SetWorkspace = int (*)(void*, void*, size_t);
  using Product = int (*)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                          int a_type, int lda, long long a_distance, const void* b, int b_type, int ldb,
                          long long b_distance, const void* beta, void* c, int c_type, int ldc, long long c_distance,
                          int batch, int compute_type, int algorithm);

  // CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_GEMM_DEFAULT
  static constexpr int kCompute32F = 68, kCompute64F = 70, kDefaultAlgorithm = -1;
  // CUDA_R_64F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16F
  static int type_of(ScalarType type) {
    return type == ScalarType::Double ? 1 : type == ScalarType::Float ? 0 : type == ScalarType::BFloat16 ? 14 : 2;
  }

  Blas() {
    const std::string name = "libcublas.so." + std::to_string(CUDART_VERSION / 1000);
    void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return;
    set_math_mode_ = reinterpret_cast<SetMathMode>(dlsym(library, "cublasSetMathMode"));
    product_ = reinterpret_cast<Product>(dlsym(library, "cublasGemmStridedBatchedEx"));
    create_ = reinterpret_cast<Create>(dlsym(library, "cublasCreate_v2"));
    set_stream_ = reinterpret_cast<SetStream>(dlsym(library, "cublasSetStream_v2"));
    set_workspace_ = reinterpret_cast<SetWorkspace>(dlsym(library, "cublasSetWorkspace_v2"));
  }
  static void check(int status, const char* function) {
    STD_TORCH_CHECK(status == 0, function, " returned ", status);
  }

  SetMathMode set_math_mode_ = nullptr;
  Product product_ = nullptr;
  Create create_ = nullptr;
  SetStream set_stream_ = nullptr;
  SetWorkspace set_workspace_ = nullptr;
};

inline bool blas_available() { return Blas::get().found(); }
inline void run_product(const Gemm& g, bool tf32) { Blas::get()(g, tf32); }

// Products with a handle of the current device that is not torch's: on the stream and with the workspace that they
// are told, whatever torch's current stream is. Half types' sums stay float. Made once a device, for good; one caller
// at a time.
class OwnBlas {
 public:
  void set(void* stream, void* workspace, size_t bytes, bool tf32) {
    const Blas& blas = Blas::get();
    if (!handle_) handle_ = blas.create();
    blas.set_stream(handle_, stream, workspace, bytes);
    blas.set_math_mode(handle_, tf32 ? Blas::kTf32Math : Blas::kWideSumsMath);
  }
  void operator()(const Gemm& g) const { Blas::get().multiply(handle_, g); }

 private:
  void* handle_ = nullptr;
};

}  // namespace fastrnn::cuda
