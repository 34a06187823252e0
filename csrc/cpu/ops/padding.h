// What kernels leave alone of a padded batch, whose rows end at their lengths.
#pragma once
#include <cstring>

#include "cpu/ops/tensors.h"

namespace fastrnn {

// The rows of a padded (T,B,size) tensor that lie beyond their length: kernels never touch them.
inline void clear_padding(const LayerShape& s, const Tensor& tensor, int64_t size) {
  if (!s.order || !tensor.numel()) return;
  const size_t bytes = static_cast<size_t>(size) * tensor.element_size();
  char* const data = static_cast<char*>(tensor.data_ptr());
  for (int64_t t = 0; t < s.tensor_steps(); ++t) {
    for (int64_t b = s.active(t); b < s.B; ++b) std::memset(data + s.tensor_row(t, b) * bytes, 0, bytes);
  }
}

// Rows without a single step end in the state in which they began.
inline void keep_unused_states(const LayerShape& s, const Tensor& from, const Tensor& to, int64_t size) {
  if (!s.order) return;
  const size_t bytes = static_cast<size_t>(size) * to.element_size();
  for (int d = 0; d < s.D; ++d) {
    for (int64_t b = s.active(0); b < s.B; ++b) {
      const size_t at = static_cast<size_t>(d * s.B + s.row_of(b)) * bytes;
      std::memcpy(static_cast<char*>(to.data_ptr()) + at, static_cast<const char*>(from.data_ptr()) + at, bytes);
    }
  }
}

}  // namespace fastrnn
