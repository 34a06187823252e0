// Which instance of a stepwise kernel a launch takes: one a cell and type.
#pragma once
#include <algorithm>

#include "cuda/device/launch.cuh"
#include "cuda/device/rows.h"

namespace fastrnn::cuda {

template <template <class> class Cell>
struct CellTag {
  template <class M>
  using Of = Cell<M>;
};

// f(CellTag<Cell>, TypeTag<T>)
template <template <class> class Lstm, template <class> class Gru, template <class> class RnnTanh,
          template <class> class RnnRelu, class F>
int with_cell_of(const StepShape& shape, F f) {
  return with_type(shape.dtype, [&](auto type) {
    switch (shape.cell) {
      case CellKind::kLstm:
        return f(CellTag<Lstm>{}, type);
      case CellKind::kGru:
        return f(CellTag<Gru>{}, type);
      case CellKind::kRnnTanh:
        return f(CellTag<RnnTanh>{}, type);
      case CellKind::kRnnRelu:
        return f(CellTag<RnnRelu>{}, type);
    }
    return static_cast<int>(cudaErrorInvalidValue);
  });
}

inline int64_t longest(const StepRows& rows, int directions) {
  return directions == 1 ? rows.count[0] : std::max(rows.count[0], rows.count[1]);
}

}  // namespace fastrnn::cuda
