// Streams a WAV file through a model of an amplifier, a block at a time as an audio callback does, and says how long
// that took.
//
//     stream MODEL IN.wav OUT.wav [BLOCK]
//
// IN.wav has one channel of 16-bit samples; so has OUT.wav. BLOCK, samples a call, is 64 by default.
#include <fastrnn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Wav {
  uint32_t rate = 0;
  std::vector<float> samples;
};

template <class T>
T number(const std::string& bytes, size_t at) {
  T value;
  if (at + sizeof value > bytes.size()) throw std::runtime_error("the WAV file ends too early");
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

Wav read_wav(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() < 12 || bytes.compare(0, 4, "RIFF") || bytes.compare(8, 4, "WAVE")) {
    throw std::runtime_error(std::string(path) + " is not a WAV file");
  }
  Wav wav;
  for (size_t at = 12; at + 8 <= bytes.size();) {
    const std::string name = bytes.substr(at, 4);
    const size_t size = number<uint32_t>(bytes, at + 4), data = at + 8;
    if (name == "fmt ") {
      if (number<uint16_t>(bytes, data) != 1 || number<uint16_t>(bytes, data + 2) != 1 ||
          number<uint16_t>(bytes, data + 14) != 16) {
        throw std::runtime_error("expected one channel of 16-bit samples");
      }
      wav.rate = number<uint32_t>(bytes, data + 4);
    } else if (name == "data") {
      const size_t count = std::min(size, bytes.size() - data) / 2;
      for (size_t i = 0; i < count; ++i) {
        wav.samples.push_back(static_cast<float>(number<int16_t>(bytes, data + 2 * i)) / 32768.0f);
      }
    }
    at = data + size + size % 2;
  }
  if (!wav.rate || wav.samples.empty()) throw std::runtime_error("the WAV file has no samples");
  return wav;
}

void write_wav(const char* path, const Wav& wav) {
  std::ofstream file(path, std::ios::binary);
  const auto put = [&](auto value) { file.write(reinterpret_cast<const char*>(&value), sizeof value); };
  const auto bytes = static_cast<uint32_t>(wav.samples.size() * 2);
  file << "RIFF";
  put(36 + bytes);
  file << "WAVEfmt ";
  put(uint32_t{16});
  put(uint16_t{1});
  put(uint16_t{1});
  put(wav.rate);
  put(wav.rate * 2);
  put(uint16_t{2});
  put(uint16_t{16});
  file << "data";
  put(bytes);
  for (const float sample : wav.samples) {
    put(static_cast<int16_t>(std::lrint(std::clamp(sample * 32768.0f, -32768.0f, 32767.0f))));
  }
  if (!file) throw std::runtime_error(std::string(path) + " cannot be written");
}

void run(int argc, char** argv) {
  if (argc < 4) throw std::runtime_error("usage: stream MODEL IN.wav OUT.wav [BLOCK]");
  const size_t block = argc > 4 ? std::strtoul(argv[4], nullptr, 10) : 64;
  if (!block) throw std::runtime_error("BLOCK: expected a number of samples");

  // Whatever may wait, before the audio begins.
  char error[FASTRNN_ERROR_SIZE];
  const std::unique_ptr<fastrnn_model, void (*)(fastrnn_model*)> model(
      fastrnn_load_file(argv[1], error, sizeof error), fastrnn_model_free);
  if (!model) throw std::runtime_error(error);
  if (fastrnn_input_size(model.get()) != 1 || fastrnn_output_size(model.get()) != 1) {
    throw std::runtime_error("expected a model of one sample in and one out");
  }
  const std::unique_ptr<fastrnn_stream, void (*)(fastrnn_stream*)> stream(fastrnn_stream_new(model.get()),
                                                                          fastrnn_stream_free);
  if (!stream) throw std::runtime_error("not enough memory");
  Wav wav = read_wav(argv[2]);

  using Clock = std::chrono::steady_clock;
  double whole = 0, worst = 0;
  for (size_t at = 0; at < wav.samples.size(); at += block) {
    float* const samples = wav.samples.data() + at;
    const size_t count = std::min(block, wav.samples.size() - at);
    const auto begin = Clock::now();
    fastrnn_process(stream.get(), samples, samples, count);  // in place
    const double took = std::chrono::duration<double>(Clock::now() - begin).count();
    whole += took;
    worst = std::max(worst, took);
  }
  write_wav(argv[3], wav);

  const double seconds = static_cast<double>(wav.samples.size()) / wav.rate;
  std::printf("%s kernels, blocks of %zu samples at %u Hz\n", fastrnn_instruction_set(model.get()), block, wav.rate);
  std::printf("%.1f s of audio in %.4f s: %.0f ns a sample, the longest block %.1f us of %.1f us\n", seconds, whole,
              1e9 * whole / static_cast<double>(wav.samples.size()), 1e6 * worst,
              1e6 * static_cast<double>(block) / wav.rate);
  std::printf("real-time factor %.5f (below 1 is faster than real time)\n", whole / seconds);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
