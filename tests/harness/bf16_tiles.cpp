// Tiles of bfloat16 on Arm (cpu/product/neon_dot.inl) against BFDOT, which makes one sum at a time: for
// test_aarch64.py.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_NEON
#include "cpu/product/few_rows.inl"
#include "cpu/product/operand.inl"

namespace fastrnn {
namespace {

using Operand = Bf16Operand;
using Halves = std::vector<uint16_t>;
constexpr int W = Simd<float>::W;
constexpr uint16_t kNan = 0x7fc0;  // what lies beside an operand counts nowhere

std::mt19937 draw(15);

Halves some(int64_t count) {
  Halves values(count);
  for (uint16_t& v : values) {
    const float value = std::normal_distribution<float>()(draw);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    v = static_cast<uint16_t>(bits >> 16);
  }
  return values;
}

float widen(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// sum += a0 * b0 + a1 * b1
__attribute__((target("arch=armv8.2-a+bf16"))) float dot(float sum, uint16_t a0, uint16_t b0, uint16_t a1,
                                                         uint16_t b1) {
  Simd<float>::V acc = {sum, 0, 0, 0};
  const TermRegister a = {a0, a1}, b = {b0, b1};
  asm("bfdot %0.4s, %1.8h, %2.8h" : "+w"(acc) : "w"(a), "w"(b));
  return acc[0];
}

// a(k) * b(k) over [begin, end), two terms at a time.
template <class A, class B>
float dots(float sum, int64_t begin, int64_t end, A&& a, B&& b) {
  for (int64_t k = begin; k < end; k += 2) {
    const bool both = k + 1 < end;
    sum = dot(sum, a(k), b(k), both ? a(k + 1) : 0, both ? b(k + 1) : 0);
  }
  return sum;
}

void expect(const char* what, int rows, int vectors, int64_t terms, float got, float wanted) {
  if (std::memcmp(&got, &wanted, 4) == 0) return;
  std::printf("%s, %d rows, %d vectors, %ld terms: %.9g, expected %.9g\n", what, rows, vectors,
              static_cast<long>(terms), got, wanted);
  std::exit(1);
}

// tile += A W^T, of a gate panel whose last unit is missing.
void product(int rows, int vectors, int64_t K) {
  const Panels<float> units{vectors * W - 1, vectors};
  const Halves left = some(rows * K), weight = some(units.length * K);
  const int64_t stride = (rows + 2) * W;
  Halves blocks(ceil_div(K, W) * stride, kNan), panel(Operand::depth(K) * vectors * W, kNan);
  for (int m = 0; m < rows; ++m) {
    block_row<float, Operand>(&left[m * K], K, Dtype::kBFloat16, blocks.data(), rows + 2, m);
    // As a kernel leaves a row that it computes: whole registers, of which the last lanes mean nothing.
    uint16_t* const last = &blocks[(K - 1) / W * stride + m * W];
    for (int64_t j = (K - 1) % W + 1; j < W; ++j) last[j] = kNan;
    Operand::end_row(last, static_cast<int>((K - 1) % W + 1));
  }
  Operand::pack(weight.data(), K, Dtype::kBFloat16, 1, units, 0, K, panel.data());
  std::vector<float> tile(rows * vectors * W), before;
  for (size_t i = 0; i < tile.size(); ++i) tile[i] = 0.37f * static_cast<float>(i % 11) - 2;
  before = tile;
  Operand::multiply(rows, vectors, tile.data(), blocks.data(), stride, panel.data(), K, nullptr);
  for (int m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < units.length; ++n) {
      const int64_t at = m * vectors * W + n;
      const float sum = dots(
          before[at], 0, K, [&](int64_t k) { return left[m * K + k]; }, [&](int64_t k) { return weight[n * K + k]; });
      expect("product", rows, vectors, K, tile[at], sum);
    }
  }
}

// tile += A^T B over `count` rows, from unit m0 of a block on, and the sums of A's rows.
void transposed(int m0, int units, int vectors, int64_t count) {
  const Panels<float> columns{vectors * W - 1, vectors};
  const Halves right = some(count * columns.length);
  Halves left = some(count * W), block(Operand::spread(count) * W, kNan);
  std::memcpy(block.data(), left.data(), left.size() * sizeof(uint16_t));
  Operand::join_rows(block.data(), count);
  Halves panel(Operand::depth(count) * vectors * W, kNan);
  const auto row = [&](int64_t r) { return reinterpret_cast<const char*>(&right[r * columns.length]); };
  Operand::right_rows(row, count, Dtype::kBFloat16, columns, 0, panel.data());
  std::vector<float> tile(units * vectors * W, 0.75f);
  Operand::multiply_transposed(units, vectors, tile.data(), block.data(), m0, panel.data(), count);
  for (int m = 0; m < units; ++m) {
    for (int64_t n = 0; n < columns.length; ++n) {
      float sum = 0.75f;
      for (int64_t r = 0; r < count; r += kJoinedRows) {
        sum += dots(
            0, r, min_of(count, r + kJoinedRows), [&](int64_t k) { return left[k * W + m0 + m]; },
            [&](int64_t k) { return right[k * columns.length + n]; });
      }
      expect("transposed", units, vectors, count, tile[m * vectors * W + n], sum);
    }
  }
}

// In whole numbers, which any order adds up to the same.
void sums(int64_t count) {
  Halves block(Operand::spread(count) * W, kNan);
  float wanted[W] = {};
  for (int64_t i = 0; i < count * W; ++i) {
    const float value = static_cast<float>(static_cast<int>(draw() % 255) - 127);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    block[i] = static_cast<uint16_t>(bits >> 16);
    wanted[i % W] += widen(block[i]);
  }
  Operand::join_rows(block.data(), count);
  const Simd<float>::V found = Operand::sum_rows(block.data(), count);
  for (int j = 0; j < W; ++j) expect("sum of rows", 1, 1, count, found[j], wanted[j]);
}

int run() {
  for (int vectors = 1; vectors <= kMaxVectors; ++vectors) {
    for (int rows = 1; rows <= Operand::tile_rows(vectors); ++rows) {
      for (const int64_t K : {1, 2, 3, 4, 5, 6, 7, 8, 13, 31, 64}) product(rows, vectors, K);
    }
    for (int m0 = 0; m0 < W; ++m0) {
      for (int units = 1; m0 + units <= W; ++units) {
        for (const int64_t count : {1, 2, 3, 4, 5, 9, 128, 255, 256, 257, 300}) transposed(m0, units, vectors, count);
      }
    }
  }
  for (const int64_t count : {1, 2, 3, 4, 5, 8, 9, 255, 256, 257, 261, 1024}) sums(count);
  std::puts("fine");
  return 0;
}

}  // namespace
}  // namespace fastrnn

int main() { return fastrnn::run(); }
