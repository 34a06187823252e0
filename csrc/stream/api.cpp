// fastrnn.h's functions: no exception passes them.
#include <fastrnn.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "stream/error.h"
#include "stream/model.h"

using fastrnn::stream::Error;
using fastrnn::stream::Memory;
using fastrnn::stream::Model;

struct fastrnn_model {
  Model model;
};

struct fastrnn_stream {
  fastrnn_model* owner;
  Memory memory;
  float* state() const { return reinterpret_cast<float*>(memory.data()); }
};

namespace {

void say(char* error, size_t size, const char* text) {
  if (error && size) std::snprintf(error, size, "%s", text);
}

// What make() returns, or null and the reason.
template <class F>
fastrnn_model* guarded(char* error, size_t size, F&& make) {
  try {
    say(error, size, "");
    return make();
  } catch (const Error& wrong) {
    say(error, size, wrong.what());
  } catch (const std::bad_alloc&) {
    say(error, size, "not enough memory");
  } catch (const std::exception& unforeseen) {
    say(error, size, unforeseen.what());
  }
  return nullptr;
}

fastrnn_model* model_of(const void* data, size_t size) {
  return new fastrnn_model{{static_cast<const unsigned char*>(data), size}};
}

void release(fastrnn_model* model) {
  if (model->model.owners.fetch_sub(1, std::memory_order_acq_rel) == 1) delete model;
}

std::vector<unsigned char> bytes_of(const char* path) {
  struct Closed {
    std::FILE* file;
    ~Closed() {
      if (file) std::fclose(file);
    }
  } opened{std::fopen(path, "rb")};
  if (!opened.file) {
    throw Error("'" + fastrnn::stream::printable(path) + "': " + std::strerror(errno));
  }
  std::vector<unsigned char> bytes;
  constexpr size_t kPiece = 1 << 16;
  for (size_t got = kPiece; got == kPiece;) {
    const size_t before = bytes.size();
    bytes.resize(before + kPiece);
    got = std::fread(bytes.data() + before, 1, kPiece, opened.file);
    bytes.resize(before + got);
  }
  if (std::ferror(opened.file)) throw Error("'" + fastrnn::stream::printable(path) + "': it cannot be read");
  return bytes;
}

}  // namespace

extern "C" {

const char* fastrnn_version(void) { return FASTRNN_VERSION; }
int fastrnn_format_version(void) { return static_cast<int>(fastrnn::stream::kFormat); }

const char* fastrnn_status_text(fastrnn_status status) {
  switch (status) {
    case FASTRNN_OK:
      return "no error";
    case FASTRNN_BAD_ARGUMENT:
      return "a pointer is null where there must be none";
  }
  return "unknown status";
}

fastrnn_model* fastrnn_load_file(const char* path, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    if (!path) throw Error("path: expected the name of a file, got null");
    const std::vector<unsigned char> bytes = bytes_of(path);
    return model_of(bytes.data(), bytes.size());
  });
}

fastrnn_model* fastrnn_load_memory(const void* data, size_t size, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    if (!data) throw Error("data: expected a model's bytes, got null");
    return model_of(data, size);
  });
}

void fastrnn_model_free(fastrnn_model* model) {
  if (model) release(model);
}

size_t fastrnn_input_size(const fastrnn_model* model) {
  return model ? static_cast<size_t>(model->model.inputs()) : 0;
}
size_t fastrnn_output_size(const fastrnn_model* model) {
  return model ? static_cast<size_t>(model->model.outputs()) : 0;
}
const char* fastrnn_instruction_set(const fastrnn_model* model) {
  return model ? model->model.instruction_set() : "";
}

fastrnn_stream* fastrnn_stream_new(fastrnn_model* model) {
  if (!model) return nullptr;
  try {
    auto* stream = new fastrnn_stream{model, Memory(model->model.state_floats() * sizeof(float))};
    model->model.owners.fetch_add(1, std::memory_order_relaxed);
    return stream;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void fastrnn_stream_free(fastrnn_stream* stream) {
  if (!stream) return;
  fastrnn_model* const owner = stream->owner;
  delete stream;
  release(owner);
}

fastrnn_status fastrnn_reset(fastrnn_stream* stream) {
  if (!stream) return FASTRNN_BAD_ARGUMENT;
  std::memset(stream->state(), 0, stream->owner->model.state_floats() * sizeof(float));
  return FASTRNN_OK;
}

fastrnn_status fastrnn_process(fastrnn_stream* stream, const float* x, float* y, size_t steps) {
  if (!stream || (steps && (!x || !y))) return FASTRNN_BAD_ARGUMENT;
  stream->owner->model.process(stream->state(), x, y, steps);
  return FASTRNN_OK;
}

}  // extern "C"
