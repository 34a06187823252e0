// What csrc/cpu/ops/spares.h keeps, for test_scratch.py: sizes one after the other, then many threads at once.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/ops/scratch.h"

namespace {

using namespace fastrnn;

constexpr size_t kMiB = 1 << 20;

#define EXPECT(condition) \
  if (!(condition)) std::printf("line %d: %s\n", __LINE__, #condition), std::exit(1)

// Addresses of calls after another: the same where the memory was kept.
char* use(size_t bytes) {
  const Scratch scratch(bytes);
  scratch.data()[0] = scratch.data()[bytes - 1] = 1;
  return scratch.data();
}

void one_after_the_other() {
  EXPECT(Scratch::release() == 0);
  use(31 * kMiB);
  EXPECT(Scratch::release() == 32 * kMiB);
  EXPECT(Scratch::release() == 0);
  use(100 << 10);  // malloc's
  use(70 * kMiB);  // larger than all that is kept
  EXPECT(Scratch::release() == 0);

  // A request that exceeds the spare leaves it alone, and both are kept.
  char* const small = use(20 * kMiB);
  char* const large = use(40 * kMiB);
  for (int i = 0; i < 3; ++i) {
    EXPECT(use(20 * kMiB) == small);
    EXPECT(use(40 * kMiB) == large);
    use(100 * kMiB);
  }
  EXPECT(use(30 * kMiB) == large);
  EXPECT(Scratch::release() == 60 * kMiB);

  // Beyond the most, the larger one stays: it serves both.
  use(36 * kMiB);
  char* const larger = use(40 * kMiB);
  EXPECT(use(36 * kMiB) == larger);
  EXPECT(Scratch::release() == 40 * kMiB);

  // No more pieces than slots, and the smallest goes.
  {
    const Scratch a(kMiB), b(kMiB), c(kMiB), d(kMiB), e(kMiB), f(kMiB), g(kMiB), h(kMiB), i(kMiB);
  }
  EXPECT(use(10 * kMiB));
  EXPECT(Scratch::release() == 24 * kMiB);

  // What outlives its call comes back from another thread.
  const Mapping lent = Scratch::lend(kMiB);
  EXPECT(use(kMiB) != lent.begin());
  std::thread([&] { Scratch::put_back(lent); }).join();
  EXPECT(Scratch::release() == 4 * kMiB);
}

void many_threads() {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([i] {
      std::mt19937 random(i);
      for (int n = 0; n < 3000; ++n) {
        const size_t bytes = (1 + random() % 20) * kMiB;
        const Scratch scratch(bytes);
        // Whoever has it has it alone.
        int64_t* const words = reinterpret_cast<int64_t*>(scratch.data());
        const size_t last = bytes / sizeof(int64_t) - 1;
        words[0] = words[last] = i * 10000 + n;
        if (random() % 8 == 0) std::this_thread::yield();
        EXPECT(words[0] == i * 10000 + n && words[last] == i * 10000 + n);
        if (random() % 100 == 0) Scratch::release();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  use(60 * kMiB);
  EXPECT(Scratch::release() <= 64 * kMiB);
  EXPECT(Scratch::release() == 0);
}

}  // namespace

// A digit a feature, as sysfs has them; the sixth is the reporting of free pages.
void whose_host_takes_free_pages() {
  const std::string folder = (std::filesystem::temp_directory_path() / "fastrnn-features-XXXXXX").string();
  std::vector<char> made(folder.c_str(), folder.c_str() + folder.size() + 1);
  EXPECT(mkdtemp(made.data()));
  const std::filesystem::path devices = made.data();
  const std::string pattern = (devices / "virtio*" / "features").string();
  const auto device = [&](const char* name, const char* features) {
    std::filesystem::create_directory(devices / name);
    std::ofstream(devices / name / "features") << features;
  };
  EXPECT(!says_free_pages_are_reported(pattern.c_str()));  // no such device
  device("virtio0", "0110");
  device("virtio1", "");
  EXPECT(!says_free_pages_are_reported(pattern.c_str()));
  device("virtio2", "01100001000000000000\n");
  EXPECT(!says_free_pages_are_reported(pattern.c_str()));
  device("virtio3", "01100101000000000000\n");
  EXPECT(says_free_pages_are_reported(pattern.c_str()));
  std::filesystem::remove_all(devices);
}

// Steps of half a second keep their pages, steps of three find them taken; what a step asks for at once is alike.
void what_was_given_back_lately() {
  constexpr int64_t kMs = 1'000'000;
  GivenBackLately lately;
  EXPECT(!lately.ask(5000 * kMs));  // nothing was
  EXPECT(!lately.ask(5001 * kMs));
  EXPECT(lately.ask(5500 * kMs));
  EXPECT(lately.ask(5501 * kMs));
  EXPECT(!lately.ask(8500 * kMs));
  EXPECT(!lately.ask(8501 * kMs));
}

int main() {
  what_was_given_back_lately();
  whose_host_takes_free_pages();
  one_after_the_other();
  many_threads();
  std::puts("fine");
}
