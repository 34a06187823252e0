// A reader of safetensors files that trusts nothing:
//     8 bytes       the length N of the header, little-endian
//     N bytes       the header, JSON: {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets"}}
//     the rest      the tensors' elements, little-endian, without gaps
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace fastrnn::stream {

struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  const unsigned char* data = nullptr;  // of any alignment, in the bytes that were given
  size_t bytes = 0;
};

struct Safetensors {
  std::unordered_map<std::string, std::string> metadata;
  std::unordered_map<std::string, StoredTensor> tensors;
};

std::string shape_text(const std::vector<int64_t>& shape);

// Throws Error where the bytes are no such file. Tensors point into them.
Safetensors read_safetensors(const unsigned char* data, size_t size);

}  // namespace fastrnn::stream
