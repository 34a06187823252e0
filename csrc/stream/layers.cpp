#include "stream/layers.h"

#include <cmath>
#include <cstring>

namespace fastrnn::stream {
namespace {

constexpr int64_t kMostLayers = 256;  // of one entry

// A tensor's elements where floats may be read.
class Floats {
 public:
  Floats() = default;
  Floats(Entry& entry, const std::string& role, const std::vector<int64_t>& shape) {
    const unsigned char* data = entry.tensor(role, shape);
    size_t count = 1;
    for (const int64_t size : shape) count *= static_cast<size_t>(size);
    values_.resize(count);
    std::memcpy(values_.data(), data, count * sizeof(float));
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian");
  }
  const float* data() const { return values_.empty() ? nullptr : values_.data(); }

 private:
  std::vector<float> values_;
};

class RnnLayer final : public Layer {
 public:
  RnnLayer(Entry& entry, const StreamKernels& kernels, const LayerShape& shape, int64_t k)
      : Layer(shape.I, shape.out_size()), state_(kernels.rnn_state(shape)) {
    const int64_t rows = gates_of(shape.cell) * shape.H;
    const std::string of_layer = "_l" + std::to_string(k);
    const Floats w_ih(entry, "weight_ih" + of_layer, {rows, shape.I});
    const Floats w_hh(entry, "weight_hh" + of_layer, {rows, shape.out_size()});
    Floats b_ih, b_hh, w_hr;
    if (shape.bias) {
      b_ih = Floats(entry, "bias_ih" + of_layer, {rows});
      b_hh = Floats(entry, "bias_hh" + of_layer, {rows});
    }
    if (shape.P) w_hr = Floats(entry, "weight_hr" + of_layer, {shape.P, shape.H});
    DirectionWeights weights;
    weights.w_ih = w_ih.data();
    weights.w_hh = w_hh.data();
    weights.b_ih = b_ih.data();
    weights.b_hh = b_hh.data();
    weights.w_hr = w_hr.data();
    layer_.shape = shape;
    memory_ = Memory(kernels.rnn_bytes(shape));  // now that the file is seen to hold as much
    kernels.prepare_rnn(layer_, weights, memory_.data());
  }
  size_t state_floats() const override { return state_; }
  Stage stage() const override { return {layer_.run, &layer_}; }

 private:
  StreamRnn layer_;
  size_t state_;
  Memory memory_;
};

class DenseLayer final : public Layer {
 public:
  DenseLayer(Entry& entry, const StreamKernels& kernels, int64_t I, int64_t O, bool bias) : Layer(I, O) {
    layer_.I = I;
    layer_.O = O;
    const Floats weight(entry, "weight", {O, I});
    const Floats b = bias ? Floats(entry, "bias", {O}) : Floats();
    memory_ = Memory(kernels.dense_bytes(layer_));
    kernels.prepare_dense(layer_, weight.data(), b.data(), memory_.data());
  }
  Stage stage() const override { return {layer_.run, &layer_}; }

 private:
  StreamDense layer_;
  Memory memory_;
};

class ScanLayer final : public Layer {
 public:
  ScanLayer(Entry& entry, const StreamKernels& kernels, const StreamScan& described, int64_t k)
      : Layer(described.I, described.O), layer_(described) {
    const std::string of_layer = "_l" + std::to_string(k);
    const Floats weight(entry, "weight" + of_layer, {layer_.O * layer_.K, layer_.I});
    const Floats weight_c(entry, "weight_c" + of_layer, {2 * layer_.O}),
        bias(entry, "bias" + of_layer, {2 * layer_.O});
    memory_ = Memory(kernels.scan_bytes(layer_));
    kernels.prepare_scan(layer_, weight.data(), weight_c.data(), bias.data(), memory_.data());
    state_ = kernels.scan_state(layer_);
  }
  size_t state_floats() const override { return state_; }
  Stage stage() const override { return {layer_.run, &layer_}; }

 private:
  StreamScan layer_;
  size_t state_ = 0;
  Memory memory_;
};

class ActivationLayer final : public Layer {
 public:
  ActivationLayer(const StreamKernels& kernels, Activation kind, float a, float b, int64_t width)
      : Layer(width, width), kernels_(kernels), kind_(kind), a_(a), b_(b) {}
  Stage stage() const override {
    return {[](const void* layer, float*, const float* x, float* y, int64_t steps) {
              const auto& own = *static_cast<const ActivationLayer*>(layer);
              own.kernels_.activate(own.kind_, own.a_, own.b_, x, y, steps * own.inputs);
            },
            this};
  }

 private:
  const StreamKernels& kernels_;
  Activation kind_;
  float a_, b_;
};

void add_rnn(Entry& entry, const StreamKernels& kernels, CellKind cell, std::vector<std::unique_ptr<Layer>>& layers) {
  entry.float32_weights();
  LayerShape shape;
  shape.T = shape.B = 1;
  shape.cell = cell;
  shape.I = entry.size("input_size");
  shape.H = entry.size("hidden_size");
  shape.P = entry.size("proj_size", 0);
  shape.bias = entry.flag("bias");
  const int64_t count = entry.size("num_layers", 1, kMostLayers);
  expect(!shape.P || facts_of(cell).has_cell, entry.what(),
         ": expected a projection in an LSTM alone, got proj_size ", shape.P);
  for (int64_t k = 0; k < count; ++k) {
    layers.push_back(std::make_unique<RnnLayer>(entry, kernels, shape, k));
    shape.I = shape.out_size();
  }
}

void add_scan(Entry& entry, const StreamKernels& kernels, std::vector<std::unique_ptr<Layer>>& layers) {
  entry.float32_weights();
  StreamScan layer;
  layer.I = entry.size("input_size");
  layer.O = entry.size("hidden_size");
  layer.use_tanh = entry.flag("use_tanh");
  layer.scale = entry.number("scale");
  const bool skip = entry.flag("has_skip_term");
  const int64_t count = entry.size("num_layers", 1, kMostLayers);
  for (int64_t k = 0; k < count; ++k) {
    layer.skip = skip && layer.I == layer.O;
    layer.K = skip && !layer.skip ? 4 : 3;
    layers.push_back(std::make_unique<ScanLayer>(entry, kernels, layer, k));
    layer.I = layer.O;
  }
}

struct Described {
  const char* type;
  Activation kind;
  const char *a, *b;  // what the options are called, or null
};
constexpr Described kActivations[] = {
    {"identity", Activation::kIdentity, nullptr, nullptr},
    {"relu", Activation::kRelu, nullptr, nullptr},
    {"leaky_relu", Activation::kLeakyRelu, "negative_slope", nullptr},
    {"clamp", Activation::kClamp, "min", "max"},
    {"tanh", Activation::kTanh, nullptr, nullptr},
    {"sigmoid", Activation::kSigmoid, nullptr, nullptr},
    {"silu", Activation::kSilu, nullptr, nullptr},
    {"elu", Activation::kElu, "alpha", nullptr},
    {"softsign", Activation::kSoftsign, nullptr, nullptr},
    {"hard_sigmoid", Activation::kHardSigmoid, nullptr, nullptr},
};

}  // namespace

void Entry::check_finite(const StoredTensor& tensor, const std::string& shown) {
  for (size_t i = 0; i < tensor.bytes / sizeof(float); ++i) {
    float value;
    std::memcpy(&value, tensor.data + i * sizeof(float), sizeof(float));
    expect(std::isfinite(value), shown, ": expected finite numbers, got ", value, " at element ", i);
  }
}

void add_layers(Entry& entry, const StreamKernels& kernels, std::vector<std::unique_ptr<Layer>>& layers) {
  for (const CellFacts& cell : kCells) {
    if (entry.type() == cell.name) {
      return add_rnn(entry, kernels, static_cast<CellKind>(&cell - kCells), layers);
    }
  }
  if (entry.type() == "sru") return add_scan(entry, kernels, layers);
  if (entry.type() == "linear") {
    entry.float32_weights();
    const int64_t I = entry.size("input_size"), O = entry.size("output_size");
    layers.push_back(std::make_unique<DenseLayer>(entry, kernels, I, O, entry.flag("bias")));
    return;
  }
  for (const Described& one : kActivations) {
    if (entry.type() != one.type) continue;
    const float a = one.a ? entry.number(one.a) : 0, b = one.b ? entry.number(one.b) : 0;
    layers.push_back(std::make_unique<ActivationLayer>(kernels, one.kind, a, b, entry.size("size")));
    return;
  }
  fail(entry.what(), ": expected a type that this version knows, got '", printable(entry.type()), "'");
}

}  // namespace fastrnn::stream
