// Float32 products in the precision that the caller names, as BLAS takes them (blas.h runs them).
//
// torch's own products round to TensorFloat-32 as torch.backends.cuda.matmul says, a switch of the whole
// process that is off by default. nn.LSTM on cuDNN follows another one, torch.backends.cudnn.rnn, on by
// default. To follow that one, the products of float32 layers take torch's cuBLAS handle of the current
// device, stream and thread, with its workspace, and set its math mode for themselves; torch sets it anew
// whenever it takes the handle. Half types and float64 have no such switch and stay torch's products.
//
// Where torch brings cuBLAS inside itself there is no library to find, and float32 products are torch's too.
//
// Products that are captured in a graph of ours (stepwise/graphs.h) are of any type, with a handle of their own.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <optional>

namespace fastrnn::cuda {

// c = op(a) op(b), or c += with `add`, in BLAS' column order: op(a) (m,k), op(b) (k,n), c (m,n), `batch` of
// them, each that many elements after the one before.
struct Gemm {
  struct Matrix {
    void* data = nullptr;
    bool transposed = false;
    int64_t ld = 1, distance = 0;
  };
  Matrix a, b, c;
  int64_t m = 0, n = 0, k = 0, batch = 1;
  bool add = false;
  // Of a and b, and of c: the same, or float for factors of a half type.
  torch::headeronly::ScalarType type = torch::headeronly::ScalarType::Float, out_type = type;
};

// A matrix, or a stack of them, as an operand; nullopt where neither its rows nor its columns are
// contiguous. BLAS sees the transpose of every row-major matrix.
inline std::optional<Gemm::Matrix> blas_matrix(const torch::stable::Tensor& t) {
  const int64_t at = t.dim() - 2;
  const int64_t rows = t.size(at), columns = t.size(at + 1), down = t.stride(at), right = t.stride(at + 1);
  Gemm::Matrix out;
  out.data = t.data_ptr();
  out.distance = at ? t.stride(0) : 0;
  // The stride of a dimension of one element says nothing.
  if ((right == 1 || columns == 1) && (down >= columns || rows == 1)) {
    out.ld = rows == 1 ? columns : down;
  } else if ((down == 1 || rows == 1) && (right >= rows || columns == 1)) {
    out.transposed = true;
    out.ld = columns == 1 ? rows : right;
  } else {
    return std::nullopt;
  }
  out.ld = std::max<int64_t>(out.ld, 1);
  return out;
}

// out = a b of row-major tensors: BLAS computes its transpose, b^T a^T. nullopt where an operand cannot be
// one, or a size is beyond cuBLAS' 32-bit arguments.
inline std::optional<Gemm> blas_product(const torch::stable::Tensor& out, const torch::stable::Tensor& a,
                                        const torch::stable::Tensor& b, bool add) {
  const auto left = blas_matrix(b), right = blas_matrix(a), result = blas_matrix(out);
  if (!left || !right || !result || result->transposed) return std::nullopt;
  Gemm g{*left, *right, *result};
  const int64_t at = out.dim() - 2;
  g.m = out.size(at + 1);
  g.n = out.size(at);
  g.k = a.size(at + 1);
  g.batch = at ? out.size(0) : 1;
  g.add = add;
  g.type = a.scalar_type();
  g.out_type = out.scalar_type();
  for (const int64_t size : {g.m, g.n, g.k, g.batch, g.a.ld, g.b.ld, g.c.ld}) {
    if (size > INT_MAX) return std::nullopt;
  }
  return g;
}

}  // namespace fastrnn::cuda
