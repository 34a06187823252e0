// Launches of the stepwise kernels: one instance a cell and type, chosen here.
#include "cuda/stepwise/kernels.cuh"

#include "cuda/stepwise/instances.cuh"

namespace fastrnn::cuda {
namespace {

template <class F>
int with_cell(const StepShape& shape, F f) {
  return with_cell_of<LstmCell, GruCell, RnnTanhCell, RnnReluCell>(shape, f);
}

}  // namespace

int forward_step(const StepShape& shape, const ForwardStep& step, void* stream) {
  return with_cell(shape, [&]<template <class> class Cell, class T>(CellTag<Cell>, TypeTag<T>) {
    return launch_rows(forward_kernel<Cell, T>, longest(step.rows, shape.D), shape.H, shape.D, stream, shape, step);
  });
}

int backward_step(const StepShape& shape, const BackwardStep& step, void* stream) {
  return with_cell(shape, [&]<template <class> class Cell, class T>(CellTag<Cell>, TypeTag<T>) {
    return launch_rows(backward_kernel<Cell, T>, longest(step.rows, shape.D), shape.H, shape.D, stream, shape, step);
  });
}

int activate_gates(const StepShape& shape, void* pre, const void* bias, void* stream) {
  return with_cell(shape, [&]<template <class> class Cell, class T>(CellTag<Cell>, TypeTag<T>) {
    using A = Compute<T>;
    if constexpr (kActivates<Cell<ScalarMath<A>>, ScalarMath<A>>) {
      return launch_rows(activate_kernel<Cell, T>, shape.N, shape.H, shape.D, stream, shape, static_cast<T*>(pre),
                         static_cast<const A*>(bias));
    } else {
      return static_cast<int>(cudaErrorInvalidValue);
    }
  });
}

int store_output(const StepShape& shape, const StepRows& rows, const RowTable& table, int64_t P, const void* h,
                 void* h_state, void* y, void* hn, void* stream) {
  return with_type(shape.dtype, [&]<class T>(TypeTag<T>) {
    return launch_rows(store_output_kernel<LstmCell, T>, longest(rows, shape.D), P, shape.D, stream, shape, rows,
                       table, static_cast<const T*>(h), static_cast<Compute<T>*>(h_state), static_cast<T*>(y),
                       static_cast<T*>(hn));
  });
}

int sum_output_gradient(const StepShape& shape, const StepRows& rows, const RowTable& table, int64_t P,
                        const void* grad_y, const void* dh, void* direct, void* out, void* stream) {
  return with_type(shape.dtype, [&]<class T>(TypeTag<T>) {
    using A = Compute<T>;
    return launch_rows(sum_output_gradient_kernel<LstmCell, T>, longest(rows, shape.D), P, shape.D, stream, shape,
                       rows, table, static_cast<const T*>(grad_y), static_cast<const A*>(dh), static_cast<A*>(direct),
                       static_cast<T*>(out));
  });
}

int previous_outputs(const StepShape& shape, const RowTable& table, int64_t width, const void* y, const void* h0,
                     void* out, void* stream) {
  const int64_t rows = table.row_offsets ? table.T * table.B : shape.N;
  return with_type(shape.dtype, [&]<class T>(TypeTag<T>) {
    return launch_rows(previous_outputs_kernel<T>, rows, width, shape.D, stream, shape, table,
                       static_cast<const T*>(y), static_cast<const T*>(h0), static_cast<T*>(out));
  });
}

int initial_gradient(const StepShape& shape, const RowTable& table, int64_t width, const void* a, const void* b,
                     void* out, void* stream) {
  return with_type(shape.dtype, [&]<class T>(TypeTag<T>) {
    using A = Compute<T>;
    return launch_rows(initial_gradient_kernel<T>, shape.B, width, shape.D, stream, shape, table,
                       static_cast<const A*>(a), static_cast<const A*>(b), static_cast<T*>(out));
  });
}

}  // namespace fastrnn::cuda
