#include "stream/safetensors.h"

#include <algorithm>

#include "stream/error.h"
#include "stream/json.h"

namespace fastrnn::stream {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMostHeader = 16 << 20;
constexpr size_t kMostDimensions = 8;

struct Element {
  std::string_view name;
  uint64_t bytes;
};
constexpr Element kElements[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                                 {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};

uint64_t little_endian(const unsigned char* bytes) {
  uint64_t value = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

const Json& member(const Json& object, const std::string& what, std::string_view name, Json::Kind kind) {
  const Json* found = object.find(name);
  expect(found && found->kind == kind, what, ": expected '", name, "', ", name_of(kind), ", got ",
         found ? name_of(found->kind) : "none");
  return *found;
}

int64_t size_at(const Json& value, const std::string& what) {
  expect(value.kind == Json::Kind::kNumber && value.integral && value.integer >= 0, what,
         ": expected an integer of at least 0 that 63 bits hold");
  return value.integer;
}

struct Place {
  uint64_t begin, end;
  const std::string* name;
};

StoredTensor read_tensor(const Json& entry, const std::string& what, const unsigned char* data, uint64_t room,
                         Place& place) {
  expect(entry.kind == Json::Kind::kObject, what, ": expected an object, got ", name_of(entry.kind));
  StoredTensor tensor;
  tensor.dtype = member(entry, what, "dtype", Json::Kind::kString).text;
  const auto* element = std::find_if(std::begin(kElements), std::end(kElements),
                                     [&](const Element& e) { return e.name == tensor.dtype; });
  expect(element != std::end(kElements), what, ": expected a dtype such as F32, got '", printable(tensor.dtype), "'");
  const Json& shape = member(entry, what, "shape", Json::Kind::kArray);
  expect(shape.items.size() <= kMostDimensions, what, ": expected at most ", kMostDimensions, " dimensions, got ",
         shape.items.size());
  uint64_t bytes = element->bytes;
  for (const Json& item : shape.items) {
    const int64_t size = size_at(item, what + ": shape");
    expect(!__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes), what,
           ": expected a shape whose size 64 bits hold");
    tensor.shape.push_back(size);
  }
  const Json& offsets = member(entry, what, "data_offsets", Json::Kind::kArray);
  expect(offsets.items.size() == 2, what, ": expected two data_offsets, got ", offsets.items.size());
  place.begin = static_cast<uint64_t>(size_at(offsets.items[0], what + ": data_offsets"));
  place.end = static_cast<uint64_t>(size_at(offsets.items[1], what + ": data_offsets"));
  expect(place.begin <= place.end && place.end <= room, what, ": expected data_offsets in order and within ", room,
         " bytes, got ", place.begin, " and ", place.end);
  expect(place.end - place.begin == bytes, what, ": expected ", bytes, " bytes for ", tensor.dtype, " of shape ",
         shape_text(tensor.shape), ", got ", place.end - place.begin);
  tensor.data = data + place.begin;
  tensor.bytes = static_cast<size_t>(bytes);
  return tensor;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

Safetensors read_safetensors(const unsigned char* data, size_t size) {
  expect(size >= kLengthBytes,
         "expected a safetensors file, which begins with the 8 bytes of its header's length, got ", size,
         " bytes in all");
  const uint64_t length = little_endian(data), rest = size - kLengthBytes;
  expect(length <= kMostHeader, "expected a header of at most ", kMostHeader, " bytes, got a length of ", length,
         ": no safetensors file, or one in big-endian order");
  expect(length <= rest, "expected a header of ", length, " bytes, got a file that ends after ", rest);
  const std::string_view text(reinterpret_cast<const char*>(data) + kLengthBytes, static_cast<size_t>(length));
  const Json header = parse_json(text);
  expect(header.kind == Json::Kind::kObject, "header: expected an object, got ", name_of(header.kind));

  Safetensors file;
  std::vector<Place> places;
  const uint64_t room = rest - length;
  for (const auto& [name, entry] : header.members) {
    if (name == "__metadata__") {
      expect(entry.kind == Json::Kind::kObject, "__metadata__: expected an object, got ", name_of(entry.kind));
      for (const auto& [key, value] : entry.members) {
        expect(value.kind == Json::Kind::kString, "__metadata__: expected texts, got ", name_of(value.kind), " for '",
               printable(key), "'");
        file.metadata.emplace(key, value.text);
      }
      continue;
    }
    Place place{0, 0, &name};
    file.tensors.emplace(name, read_tensor(entry, "tensor '" + printable(name) + "'",
                                           data + kLengthBytes + static_cast<size_t>(length), room, place));
    places.push_back(place);
  }
  // The format leaves no gaps and shares no bytes: what does is damaged, or hides something.
  std::sort(places.begin(), places.end(),
            [](const Place& a, const Place& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  uint64_t end = 0;
  for (const Place& place : places) {
    expect(place.begin == end, "tensor '", printable(*place.name), "': expected its data at offset ", end,
           ", behind the tensor before it, got ", place.begin);
    end = place.end;
  }
  expect(end == room, "expected ", end, " bytes of data, as the tensors have, got ", room);
  return file;
}

}  // namespace fastrnn::stream
