// Small kernels that are right, and the same with one thing wrong, to test the emulator itself: each fault
// must come out as the error that it is. Compiled with EMU_RACE.
//
//   selftest NAME [SEEDS]      prints "ok" or the error
#include <cmath>
#include <cstdio>

#include "cuda_on_cpu.h"
#include "emu_race_hooks.inl"

namespace {

constexpr int kThreads = 96, kBlocks = 4;

enum Fault { kNone, kNoBarrier, kHalfBarrier, kShared, kDevice, kUnwritten, kLane, kNoWait, kApart, kApartBefore };

// out[block] = the sum of the block's part of in, over shared memory.
template <Fault fault>
void block_sum(const float* in, float* out) {
  SMEM_DYN(float, part);
  const int t = threadIdx.x;
  part[t + (fault == kShared && t == kThreads - 1)] =
      in[blockIdx.x * kThreads + t + (fault == kDevice ? kThreads : 0)];
  if (fault != kNoBarrier && (fault != kHalfBarrier || t < 64)) __syncthreads();
  if (t != 0) return;
  float sum = 0;
  for (int i = 0; i < kThreads - (fault == kUnwritten); ++i) sum += part[i];
  if (fault != kUnwritten || blockIdx.x) out[blockIdx.x] = sum;
}

// The same within a warp, by shuffles.
template <Fault fault>
void warp_sum(const float* in, float* out) {
  const int t = threadIdx.x;
  float v = in[blockIdx.x * kThreads + t];
  for (int d = 16; d; d /= 2) {
    if (fault != kLane || t % 32 != 5) v += __shfl_xor_sync(~0u, v, d);
  }
  if (t % 32 == 0) out[blockIdx.x * (kThreads / 32) + t / 32] = v;
}

// The sums of pairs, by copies that the neighbouring lane makes, twice into the same place. A shuffle brings the
// lanes together, but orders no memory.
template <Fault fault>
void pair_sum(const float* in, float* out) {
  SMEM_DYN(float, part);
  const int t = threadIdx.x;
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    emu::cp_async(emu::to_shared(part + t), in + blockIdx.x * kThreads + t, 4, emu::Loc::current());
    emu::cp_commit();
    if (fault != kNoWait) emu::cp_wait(0);
    if (fault != kApart) __syncwarp();
    if (t % 2 == 0) sum += (part[t] + part[t + 1]) / 2;
    __shfl_xor_sync(~0u, sum, 1);
    if (fault != kApartBefore) __syncwarp();
  }
  if (t % 2 == 0) out[(blockIdx.x * kThreads + t) / 2] = sum;
}

// Every block of a cluster sends its rank, `words` times, to its right neighbour, and waits for its left one's.
template <int expected_bytes, bool armed, int words = 1>
void ring(uint32_t* out) {
  SMEM_DYN(uint32_t, memory);
  const uint32_t data = emu::to_shared(memory), bar = data + 64;
  const emu::Loc here = emu::Loc::current();
  const uint32_t rank = emu::S.cur->blk->rank, size = emu::S.cfg.cluster, next = (rank + 1) % size;
  if (threadIdx.x == 0) emu::mbar_init(bar, 1, here);
  __syncthreads();
  emu::cluster_arrive(here);
  emu::cluster_wait(here);
  if (threadIdx.x == 0) {
    if (armed) emu::mbar_arrive(bar, expected_bytes, here);
    const uint32_t value[4] = {rank, rank, rank, rank};
    emu::st_async(emu::mapa(data, next, here), value, 4 * words, emu::mapa(bar, next, here), here);
  }
  emu::mbar_wait(bar, 0, here);
  if (threadIdx.x == 0) out[blockIdx.x] = memory[words - 1];
  emu::cluster_arrive(here);
  emu::cluster_wait(here);
  if (words == 1 || rank == 0) return;  // the others' next barrier does without who has left
  emu::cluster_arrive(here);
  emu::cluster_wait(here);
}

// Each block waits for all the others to have counted.
void count_all(uint32_t* counter) {
  if (threadIdx.x == 0) {
    atomicAdd(counter, 1);
    while (emu::poll(counter, emu::Loc::current()) != gridDim.x) {
    }
  }
  __syncthreads();
}

template <class Kernel>
void run_sums(Kernel kernel, int results) {
  float* in = emu::dev_alloc<float>(kBlocks * kThreads, "in");
  float* out = emu::dev_alloc<float>(results, "out");
  for (int i = 0; i < kBlocks * kThreads; ++i) in[i] = static_cast<float>(i % 7);
  emu::Config config;
  config.grid = kBlocks;
  config.block = kThreads;
  config.smem = kThreads * sizeof(float);
  emu::launch(config, kernel, in, out);
  for (int i = 0; i < results; ++i) {
    float want = 0;
    const int n = kBlocks * kThreads / results;
    for (int k = 0; k < n; ++k) want += in[i * n + k];
    if (!(out[i] == want)) throw emu::Error(emu::fmt("wrong sum %d: %g, not %g", i, out[i], want));
  }
}

template <class Kernel>
void run_ring(Kernel kernel) {
  uint32_t* out = emu::dev_alloc<uint32_t>(8, "out");
  emu::Config config;
  config.grid = 8;
  config.block = 64;
  config.cluster = 4;
  config.smem = 128;
  emu::launch(config, kernel, out);
  for (unsigned i = 0; i < 8; ++i) {
    if (out[i] != (i + 3) % 4) throw emu::Error(emu::fmt("block %u heard from %u", i, out[i]));
  }
}

void run_count(bool cooperative) {
  uint32_t* counter = emu::dev_alloc<uint32_t>(1, "counter");
  *counter = 0;
  emu::Config config;
  config.grid = 6;
  config.block = 64;
  config.cooperative = cooperative;
  emu::launch(config, count_all, counter);
}

// Every half in both directions, and what lies halfway to the next one and just beside that.
void run_halves() {
  const auto value = [](int b) {
    const int exponent = b >> 10, mantissa = b & 0x3ff;
    return exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(1.0f * mantissa, -24);
  };
  const auto expect = [](float f, int b) {
    const int got = __float2half_rn(f).b, negative = __float2half_rn(-f).b;
    if (got != b || negative != (b | 0x8000))
      throw emu::Error(emu::fmt("half of %a: %x and %x, not %x", f, got, negative, b));
  };
  for (int b = 0; b <= 0x7c00; ++b) {  // 0x7c00 is infinity, where the next power of two would be
    const float f = b < 0x7c00 ? value(b) : INFINITY;
    const __half half{static_cast<uint16_t>(b)}, negative{static_cast<uint16_t>(b | 0x8000)};
    if (__half2float(half) != f || __half2float(negative) != -f) throw emu::Error(emu::fmt("%x is not %a", b, f));
    expect(f, b);
    if (b == 0x7c00) continue;
    const float middle = (f + value(b + 1)) / 2;
    expect(middle, b + (b & 1));
    expect(std::nextafter(middle, 0.0f), b);
    expect(std::nextafter(middle, INFINITY), b + 1);
  }
  expect(1e30f, 0x7c00);
  const float nan = __half2float(__float2half_rn(NAN));
  if (nan == nan) throw emu::Error("NaN became a number");
}

void run(const std::string& name) {
  if (name == "block sum") return run_sums(block_sum<kNone>, kBlocks);
  if (name == "no barrier") return run_sums(block_sum<kNoBarrier>, kBlocks);
  if (name == "barrier for some") return run_sums(block_sum<kHalfBarrier>, kBlocks);
  if (name == "past shared memory") return run_sums(block_sum<kShared>, kBlocks);
  if (name == "past a buffer") return run_sums(block_sum<kDevice>, kBlocks);
  if (name == "a result not written") return run_sums(block_sum<kUnwritten>, kBlocks);
  if (name == "warp sum") return run_sums(warp_sum<kNone>, kBlocks * kThreads / 32);
  if (name == "a lane stays out") return run_sums(warp_sum<kLane>, kBlocks * kThreads / 32);
  if (name == "copies") return run_sums(pair_sum<kNone>, kBlocks * kThreads / 2);
  if (name == "a copy not waited for") return run_sums(pair_sum<kNoWait>, kBlocks * kThreads / 2);
  if (name == "another lane's copy") return run_sums(pair_sum<kApart>, kBlocks * kThreads / 2);
  if (name == "a copy over what is read") return run_sums(pair_sum<kApartBefore>, kBlocks * kThreads / 2);
  if (name == "ring") return run_ring(ring<4, true>);
  if (name == "ring of vectors") return run_ring(ring<16, true, 4>);
  if (name == "too many bytes expected") return run_ring(ring<8, true>);
  if (name == "too few bytes expected") return run_ring(ring<0, true>);
  if (name == "not armed") return run_ring(ring<4, false>);
  if (name == "count") return run_count(true);
  if (name == "not cooperative") return run_count(false);
  if (name == "halves") return run_halves();
  throw emu::Error("no such case: " + name);
}

}  // namespace

int main(int argc, char** argv) {
  const int seeds = argc > 2 ? atoi(argv[2]) : 1;
  try {
    for (int seed = 1; seed <= seeds; ++seed) {
      emu::opt.seed = static_cast<uint64_t>(seed);
      run(argv[1]);
    }
    puts("ok");
  } catch (const emu::Error& error) {
    puts(error.what());
  }
  return 0;
}
