// A pass of one layer: what fastrnn._C hands to libfastrnn_cpu without the dispatcher between them, as stream.h does
// for packed ones.
#pragma once
#include "params/rnn.h"

namespace fastrnn {

// What libfastrnn_cpu gives away by the operator cpu_layer_entry.
struct LayerEntry {
  size_t bytes;  // of this struct and of a call: both libraries are of the same sources, or this is not used
  // Run a pass whose tensors were checked. False: it could not, and the operator is to say why.
  bool (*forward)(const ForwardParams& params) noexcept;
  bool (*backward)(const BackwardParams& params) noexcept;
  bool (*observed)();  // see cpu/ops/observers.h; or null
};
constexpr size_t kLayerEntryBytes =
    (sizeof(LayerEntry) * 1000 + sizeof(ForwardParams)) * 1000 + sizeof(BackwardParams);

}  // namespace fastrnn
