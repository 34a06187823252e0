#include "stream/model.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "stream/isa/choose.h"
#include "stream/layers.h"

namespace fastrnn::stream {
namespace {

constexpr size_t kMostEntries = 1024;
// Of what passes between layers: enough steps that a layer's weights, once in the cache or in registers, are used
// many times, few enough that the rows between layers stay in the first-level cache.
constexpr int64_t kMostChunk = 64, kChunkFloats = 2048;

constexpr size_t kLine = kStreamAlignment / sizeof(float);
size_t whole_lines(size_t floats) { return (floats + kLine - 1) / kLine * kLine; }

const Json& member(const Json& description, const char* name, Json::Kind kind) {
  const Json* found = description.find(name);
  expect(found && found->kind == kind, "description: expected '", name, "', ", name_of(kind), ", got ",
         found ? name_of(found->kind) : "none");
  return *found;
}

}  // namespace

Memory::Memory(size_t bytes) {
  if (!bytes) return;
  data_.reset(static_cast<char*>(::operator new(bytes, std::align_val_t{kStreamAlignment})));
  std::memset(data_.get(), 0, bytes);
}
void Memory::Free::operator()(char* data) const { ::operator delete(data, std::align_val_t{kStreamAlignment}); }

Model::Model(const unsigned char* data, size_t size) : kernels_(choose_kernels()) {
  const Safetensors file = read_safetensors(data, size);
  const auto found = file.metadata.find("fastrnn");
  expect(found != file.metadata.end(),
         "expected metadata 'fastrnn', the model's description that fastrnn.runtime.save writes, got none");
  const Json description = parse_json(found->second);
  expect(description.kind == Json::Kind::kObject, "description: expected an object, got ", name_of(description.kind));
  const Json& version = member(description, "version", Json::Kind::kNumber);
  expect(version.integral && version.integer == kFormat, "description: expected version ", kFormat,
         " of the format, which this library reads, got ", version.number);
  const std::string& order = member(description, "byteorder", Json::Kind::kString).text;
  expect(order == "little", "description: expected byteorder 'little', got '", printable(order), "'");
  const Json& entries = member(description, "layers", Json::Kind::kArray);
  expect(!entries.items.empty() && entries.items.size() <= kMostEntries, "description: expected 1 to ", kMostEntries,
         " layers, got ", entries.items.size());

  std::set<std::string> used;
  std::vector<std::string> names;
  for (size_t i = 0; i < entries.items.size(); ++i) {
    Entry entry(entries.items[i], i, file);
    add_layers(entry, kernels_, layers_);
    entry.done(used);
    names.resize(layers_.size(), entry.what());
  }
  for (const auto& [name, tensor] : file.tensors) {
    expect(used.count(name), "tensor '", printable(name), "' belongs to no layer");
  }
  check_chain(names);
  lay_out();
}

void Model::check_chain(const std::vector<std::string>& names) const {
  for (size_t i = 1; i < layers_.size(); ++i) {
    expect(layers_[i]->inputs == layers_[i - 1]->outputs, names[i], ": expected ", layers_[i - 1]->outputs,
           " inputs, the outputs of ", names[i - 1], ", got ", layers_[i]->inputs);
  }
}

// A stream's memory: two buffers that layers write in turn, then each layer's state.
void Model::lay_out() {
  inputs_ = layers_.front()->inputs;
  outputs_ = layers_.back()->outputs;
  int64_t widest = inputs_;
  for (const auto& layer : layers_) widest = std::max(widest, layer->outputs);
  chunk_ = std::clamp<int64_t>(kChunkFloats / widest, 1, kMostChunk);
  buffer_ = whole_lines(static_cast<size_t>(chunk_ * widest));
  size_t at = 2 * buffer_;
  for (const auto& layer : layers_) {
    stages_.push_back(layer->stage());
    stages_.back().state = at;
    at += whole_lines(layer->state_floats());
  }
  state_floats_ = at;
}

void Model::process(float* state, const float* x, float* y, size_t steps) const noexcept {
  float* const buffers[2] = {state, state + buffer_};
  const size_t count = stages_.size();
  for (size_t done = 0; done < steps;) {
    const int64_t now = std::min<int64_t>(chunk_, static_cast<int64_t>(std::min<size_t>(steps - done, kMostChunk)));
    const float* in = x;
    if (count == 1 && x == y) {  // a layer may write an output before it has read the last input
      std::memcpy(buffers[0], x, static_cast<size_t>(now * inputs_) * sizeof(float));
      in = buffers[0];
    }
    for (size_t i = 0; i < count; ++i) {
      float* out = i + 1 == count ? y : buffers[i % 2];
      const Stage& stage = stages_[i];
      stage.run(stage.layer, state + stage.state, in, out, now);
      in = out;
    }
    x += now * inputs_;
    y += now * outputs_;
    done += static_cast<size_t>(now);
  }
}

}  // namespace fastrnn::stream
