// From a layer's description to one that runs.
#pragma once
#include <memory>
#include <vector>

#include "stream/entry.h"
#include "stream/model.h"

namespace fastrnn::stream {

// Appends the layers of one entry (several of a recurrent one with num_layers).
void add_layers(Entry& entry, const StreamKernels& kernels, std::vector<std::unique_ptr<Layer>>& layers);

}  // namespace fastrnn::stream
