// Eight streams on one model, each on a thread of its own, all at the same time; each must give what one alone gives.
//
//     many MODEL
#include <fastrnn.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

int main(int, char** argv) {
  constexpr int kStreams = 8;
  constexpr size_t kSteps = 300;
  char error[FASTRNN_ERROR_SIZE];
  fastrnn_model* model = fastrnn_load_file(argv[1], error, sizeof error);
  if (!model) return std::puts(error), 2;
  const size_t inputs = fastrnn_input_size(model), outputs = fastrnn_output_size(model);
  std::vector<float> x(kSteps * inputs);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7 % 31) / 16 - 1;
  const auto run = [&](fastrnn_stream* stream, size_t piece) {
    std::vector<float> y(kSteps * outputs);
    for (int round = 0; round < 3; ++round) {
      fastrnn_reset(stream);
      for (size_t at = 0; at < kSteps; at += piece) {
        const size_t steps = piece < kSteps - at ? piece : kSteps - at;
        fastrnn_process(stream, x.data() + at * inputs, y.data() + at * outputs, steps);
      }
    }
    return y;
  };
  fastrnn_stream* alone = fastrnn_stream_new(model);
  const std::vector<float> expected = run(alone, kSteps);
  fastrnn_stream_free(alone);
  std::atomic<int> different{0}, begun{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kStreams; ++i) {
    threads.emplace_back([&, i] {
      fastrnn_stream* stream = fastrnn_stream_new(model);
      ++begun;
      while (begun < kStreams) std::this_thread::yield();
      const std::vector<float> y = run(stream, static_cast<size_t>(1 + i * 13));
      if (std::memcmp(y.data(), expected.data(), y.size() * sizeof(float))) ++different;
      fastrnn_stream_free(stream);
    });
  }
  while (begun < kStreams) std::this_thread::yield();
  fastrnn_model_free(model);  // while they are at work
  for (std::thread& thread : threads) thread.join();
  std::printf("%d of %d streams differ\n", different.load(), kStreams);
  return different ? 1 : 0;
}
