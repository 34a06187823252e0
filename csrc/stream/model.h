// A model and its streams, behind fastrnn.h.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/stream/kernels.h"

namespace fastrnn::stream {

constexpr int64_t kFormat = 1;  // of the description; docs/runtime.md has its history

// Memory of its own, aligned for the kernels, zeros at first.
class Memory {
 public:
  explicit Memory(size_t bytes = 0);
  char* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(char* data) const;
  };
  std::unique_ptr<char, Free> data_;
};

// What a stream runs of a layer. A call of a sample has a few of them, and a function of a table costs it more than
// one that lies there.
struct Stage {
  StreamRun run = nullptr;
  const void* layer = nullptr;
  size_t state = 0;  // where its state begins in a stream's memory
};

// One layer, of any kind. Weights are its own; the state is the stream's.
class Layer {
 public:
  Layer(int64_t inputs, int64_t outputs) : inputs(inputs), outputs(outputs) {}
  virtual ~Layer() = default;
  virtual size_t state_floats() const { return 0; }
  virtual Stage stage() const = 0;

  const int64_t inputs, outputs;
};

class Model {
 public:
  // Throws Error for bytes that are no model, and bad_alloc. The bytes are not needed afterwards.
  Model(const unsigned char* data, size_t size);

  const char* instruction_set() const { return kernels_.name; }
  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }
  size_t state_floats() const { return state_floats_; }
  // y (steps, outputs) of x (steps, inputs), which may be one buffer where the sizes are the same.
  void process(float* state, const float* x, float* y, size_t steps) const noexcept;

  std::atomic<int64_t> owners{1};  // its handle and every stream

 private:
  void check_chain(const std::vector<std::string>& names) const;
  void lay_out();

  const StreamKernels& kernels_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::vector<Stage> stages_;  // of the layers, whose states come behind the two buffers
  int64_t inputs_ = 0, outputs_ = 0;
  int64_t chunk_ = 1;  // steps that a layer does before the next one takes its turn
  size_t buffer_ = 0;  // floats of one of the two buffers between layers
  size_t state_floats_ = 0;
};

}  // namespace fastrnn::stream
