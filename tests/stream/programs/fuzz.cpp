// Damaged model files, many of them: each must load or be refused with a reason, and what loads must run. Under
// AddressSanitizer and UBSan.
//
//     fuzz ROUNDS SEED MODEL...
//
// Prints how many of them loaded and how many reasons there were.
#include <fastrnn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <vector>

using Bytes = std::vector<unsigned char>;

static std::mt19937_64 draw;
static size_t below(size_t n) { return n ? static_cast<size_t>(draw() % n) : 0; }

static void set_length(Bytes& bytes, uint64_t length) {
  for (int i = 0; i < 8 && i < static_cast<int>(bytes.size()); ++i) bytes[i] = length >> (8 * i) & 0xff;
}
static uint64_t length_of(const Bytes& bytes) {
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | bytes[i];
  return length;
}

// Pieces that a header is made of, and what overflows, ends too early or nests.
static const char* const kPieces[] = {"0",
                                      "1",
                                      "-1",
                                      "9223372036854775807",
                                      "18446744073709551616",
                                      "4294967296",
                                      "1e999",
                                      "{",
                                      "}",
                                      "[",
                                      "]",
                                      ",",
                                      ":",
                                      "\"",
                                      "\\\"",
                                      "null",
                                      "true",
                                      "\\u0000",
                                      "\"F32\"",
                                      "\"F64\"",
                                      "[[[[[[[[[[[[[[[[[[[[",
                                      "lstm",
                                      "linear",
                                      "sru",
                                      "gru",
                                      "\\\"hidden_size\\\":1048576",
                                      "\xff"};

static void damage(Bytes& bytes) {
  const size_t header = bytes.size() < 8 ? 0 : std::min<uint64_t>(length_of(bytes), bytes.size() - 8);
  const auto at = bytes.begin();
  switch (below(9)) {
    case 0:  // any byte
      if (!bytes.empty()) bytes[below(bytes.size())] = static_cast<unsigned char>(draw());
      break;
    case 1:  // a byte of the header
      if (header) bytes[8 + below(header)] = static_cast<unsigned char>(32 + below(95));
      break;
    case 2:  // an end too early
      bytes.resize(below(bytes.size() + 1));
      break;
    case 3:  // another length
      set_length(bytes, below(3) ? below(2 * bytes.size() + 2) : draw());
      break;
    case 4: {  // a digit
      std::vector<size_t> digits;
      for (size_t i = 8; i < 8 + header; ++i) {
        if (bytes[i] >= '0' && bytes[i] <= '9') digits.push_back(i);
      }
      if (!digits.empty()) bytes[digits[below(digits.size())]] = static_cast<unsigned char>('0' + below(10));
      break;
    }
    case 5: {  // a piece more, and the length that goes with it
      if (!header) break;
      const std::string piece = kPieces[below(std::size(kPieces))];
      bytes.insert(at + 8 + static_cast<ptrdiff_t>(below(header)), piece.begin(), piece.end());
      set_length(bytes, header + piece.size());
      break;
    }
    case 6: {  // a piece less
      if (!header) break;
      const size_t from = below(header), size = std::min(header - from, 1 + below(20));
      bytes.erase(at + 8 + static_cast<ptrdiff_t>(from), at + 8 + static_cast<ptrdiff_t>(from + size));
      set_length(bytes, header - size);
      break;
    }
    case 7: {  // weights that are none
      if (bytes.size() < 8 + header + 4) break;
      const float wrong[] = {__builtin_nanf(""), __builtin_inff(), 1e38f};
      std::memcpy(bytes.data() + 8 + header + below((bytes.size() - 8 - header) / 4) * 4, &wrong[below(3)], 4);
      break;
    }
    default: {  // one number for another
      std::vector<size_t> digits;
      for (size_t i = 8; i < 8 + header; ++i) {
        if (bytes[i] >= '0' && bytes[i] <= '9') digits.push_back(i);
      }
      if (digits.empty()) break;
      const std::string piece = kPieces[below(7)];
      const size_t where = digits[below(digits.size())];
      bytes.erase(at + static_cast<ptrdiff_t>(where));
      bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(where), piece.begin(), piece.end());
      set_length(bytes, header + piece.size() - 1);
    }
  }
}

int main(int argc, char** argv) {
  const int rounds = std::atoi(argv[1]);
  draw.seed(static_cast<uint64_t>(std::atoi(argv[2])));
  std::vector<Bytes> models;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    models.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  int loaded = 0;
  std::set<std::string> reasons;
  for (int round = 0; round < rounds; ++round) {
    // Memory of exactly this size, so that a byte beyond it is seen.
    Bytes bytes = models[below(models.size())];
    for (size_t i = 1 + below(3); i > 0; --i) damage(bytes);
    bytes.shrink_to_fit();
    char error[FASTRNN_ERROR_SIZE];
    std::memset(error, 'x', sizeof error);
    fastrnn_model* model = fastrnn_load_memory(bytes.empty() ? "" : reinterpret_cast<char*>(bytes.data()),
                                               bytes.size(), error, sizeof error);
    if (!std::memchr(error, 0, sizeof error)) return std::puts("an error text without an end"), 1;
    if (!model) {
      if (!*error) return std::puts("no reason"), 1;
      reasons.insert(error);
      continue;
    }
    ++loaded;
    fastrnn_stream* stream = fastrnn_stream_new(model);
    const size_t steps = 70;
    std::vector<float> x(steps * fastrnn_input_size(model), 0.5f), y(steps * fastrnn_output_size(model));
    fastrnn_process(stream, x.data(), y.data(), steps);
    fastrnn_process(stream, x.data(), y.data(), 1);
    fastrnn_stream_free(stream);
    fastrnn_model_free(model);
  }
  std::printf("%d loaded, %zu reasons\n", loaded, reasons.size());
  return 0;
}
