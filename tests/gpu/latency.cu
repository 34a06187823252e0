// The latencies that the persistent kernels' time a step hangs on, and every instruction that they write as
// assembly against its definition. Prints one JSON object; exit status 1 where an instruction is not what its
// wrapper says.
//
//     nvcc -O3 -std=c++20 -arch=native -I csrc tests/gpu/latency.cu -o latency && ./latency
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/persistent/ptx.cuh"

namespace {

using namespace fastrnn::cuda;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

template <class T>
struct Buffer {
  explicit Buffer(size_t n) : count(n) {
    check(cudaMalloc(&data, n * sizeof(T)), "cudaMalloc");
    check(cudaMemset(data, 0, n * sizeof(T)), "cudaMemset");
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    check(cudaMemcpy(data, values.data(), count * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  std::vector<T> host() const {
    std::vector<T> out(count);
    check(cudaMemcpy(out.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return out;
  }
  T* data = nullptr;
  size_t count;
};

// Microseconds of work() between two events, the least of a few tries: what it takes undisturbed.
template <class Work>
double least_us(cudaStream_t stream, Work work) {
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&stop), "cudaEventCreate");
  float best = 1e30f;
  for (int i = 0; i < 6; ++i) {  // the first is the warm-up, and rarely the least
    check(cudaEventRecord(start, stream), "cudaEventRecord");
    work();
    check(cudaEventRecord(stop, stream), "cudaEventRecord");
    check(cudaEventSynchronize(stop), "cudaEventSynchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, stop), "cudaEventElapsedTime");
    best = std::min(best, ms);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  return best * 1e3;
}

// ---- latencies ----------------------------------------------------------------------------------------

__global__ void empty_kernel() {}

double launch_us(cudaStream_t stream) {
  const int launches = 1000;
  return least_us(stream,
                  [&] {
                    for (int i = 0; i < launches; ++i) empty_kernel<<<1, 32, 0, stream>>>();
                  }) /
         launches;
}

double graph_launch_us(cudaStream_t stream) {
  const int launches = 1000;
  cudaGraph_t graph;
  cudaGraphExec_t runnable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  for (int i = 0; i < launches; ++i) empty_kernel<<<1, 32, 0, stream>>>();
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&runnable, graph, 0), "cudaGraphInstantiate");
  const double us = least_us(stream, [&] { check(cudaGraphLaunch(runnable, stream), "cudaGraphLaunch"); }) / launches;
  cudaGraphExecDestroy(runnable);
  cudaGraphDestroy(graph);
  return us;
}

// One thread follows a chain through memory that the L2 cache holds, past the L1.
__global__ void chase(const uint32_t* next, int steps, uint32_t* end, long long* cycles) {
  uint32_t at = 0;
  for (int i = 0; i < 1024; ++i) at = __ldcg(next + at);
  const long long start = clock64();
  for (int i = 0; i < steps; ++i) at = __ldcg(next + at);
  *cycles = clock64() - start;
  *end = at;
}

struct Chase {
  double cycles, ns;
};
Chase l2_round_trip(cudaStream_t stream) {
  const uint32_t links = 1 << 13, stride = 64;  // of 256 bytes: 2 MB
  std::vector<uint32_t> order(links), next(links * stride);
  for (uint32_t i = 0; i < links; ++i) order[i] = i;
  std::shuffle(order.begin() + 1, order.end(), std::mt19937(1));
  for (uint32_t i = 0; i < links; ++i) next[order[i] * stride] = order[(i + 1) % links] * stride;
  const Buffer<uint32_t> chain(next);
  const Buffer<uint32_t> end(1);
  const Buffer<long long> cycles(1);
  const int few = 8192, many = 40960;
  const auto run = [&](int steps) {
    return least_us(stream, [&] { chase<<<1, 1, 0, stream>>>(chain.data, steps, end.data, cycles.data); });
  };
  const double short_us = run(few), long_us = run(many);
  return {static_cast<double>(cycles.host()[0]) / many, (long_us - short_us) * 1e3 / (many - few)};
}

// Every block counts a flag up and waits for all the others, as the grid tier does once a step.
__global__ void exchange(uint64_t* flag, int steps, uint32_t* gave_up) {
  for (int i = 0; i < steps; ++i) {
    __syncwarp();
    if (threadIdx.x == 0) {
      add_release(flag, 1);
      const uint64_t all = static_cast<uint64_t>(gridDim.x) * (i + 1);
      int polls = 0;
      while (load_acquire(flag) < all && ++polls < 1 << 24) {
      }
      if (polls == 1 << 24) *gave_up = 1;
    }
    __syncwarp();
  }
}

double exchange_us(cudaStream_t stream, int blocks) {
  const int steps = 2000;
  const Buffer<uint64_t> flag(1);
  const Buffer<uint32_t> gave_up(1);
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(32);
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  const double us = least_us(stream, [&] {
    check(cudaMemsetAsync(flag.data, 0, sizeof(uint64_t), stream), "cudaMemsetAsync");
    check(cudaLaunchKernelEx(&config, exchange, flag.data, steps, gave_up.data), "exchange");
  });
  return gave_up.host()[0] ? -1 : us / steps;
}

__device__ void set_lane(uint2& v, uint32_t value) { v = make_uint2(value, ~value); }
__device__ void set_lane(uint4& v, uint32_t value) { v = make_uint4(value, ~value, value + 1, value - 1); }

// Every warp pushes its words to all CTAs of its cluster and waits for theirs, as the cluster tier does once a step.
// `barrier_only`: a barrier of the cluster instead.
template <class Words>
__global__ void cluster_exchange(int ctas, int steps, bool barrier_only, uint32_t* wrong) {
  if constexpr (!kHasClusters) return;
  __shared__ __align__(16) Words received[2][16][32];
  __shared__ __align__(8) uint64_t barriers[2];
  const int lane = static_cast<int>(threadIdx.x), rank = static_cast<int>(blockIdx.x) % ctas;
  const auto barrier = [&](int i) { return shared_address(&barriers[i & 1]); };
  const auto arm = [&](int i) {
    if (lane == 0 && i < steps && !barrier_only) barrier_expect(barrier(i), ctas * 32 * sizeof(Words));
  };
  if (lane == 0) {
    barrier_init(barrier(0));
    barrier_init(barrier(1));
    barrier_init_fence();
  }
  arm(0);
  arm(1);
  cluster_barrier();
  for (int i = 0; i < steps; ++i) {
    if (barrier_only) {
      cluster_barrier();
      continue;
    }
    Words mine;
    set_lane(mine, static_cast<uint32_t>((i * 16 + rank) * 32 + lane));
    const uint32_t data = shared_address(&received[i & 1][rank][lane]);
    for (int n = 1; n <= ctas; ++n) {
      const int peer = (rank + n) % ctas;
      push(peer_address(data, peer), mine, peer_address(barrier(i), peer));
    }
    while (!try_phase(barrier(i), (i >> 1) & 1)) {
    }
    arm(i + 2);
    for (int peer = 0; peer < ctas; ++peer) {
      Words want;
      set_lane(want, static_cast<uint32_t>((i * 16 + peer) * 32 + lane));
      const Words got = received[i & 1][peer][lane];
      if (got.x != want.x || got.y != want.y) atomicAdd(wrong, 1);
    }
    __syncwarp();  // the warp has read everything when it pushes again
  }
  cluster_barrier();
}

struct ClusterTimes {
  int active = 0;  // clusters of this size that the device runs at once, an SM a CTA
  double barrier_us = 0, push8_us = 0, push16_us = 0;
  uint32_t wrong = 0;  // words that were not what a peer pushed
};
ClusterTimes cluster_times(cudaStream_t stream, int ctas) {
  const int steps = 2000, an_sm = 120 << 10;  // bytes of shared memory that leave no room for a second CTA
  ClusterTimes times;
  cudaLaunchAttribute size = {};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim.x = static_cast<unsigned>(ctas);
  size.val.clusterDim.y = size.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(32);
  config.stream = stream;
  config.attrs = &size;
  config.numAttrs = 1;
  const Buffer<uint32_t> wrong(1);
  const auto run = [&](auto kernel, bool barrier_only) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "non-portable size");
    return least_us(stream,
                    [&] {
                      check(cudaLaunchKernelEx(&config, kernel, ctas, steps, barrier_only, wrong.data), "cluster");
                    }) /
           steps;
  };
  config.dynamicSmemBytes = an_sm;
  const auto kernel = cluster_exchange<uint2>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, an_sm), "shared memory");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "non-portable size");
  if (cudaOccupancyMaxActiveClusters(&times.active, kernel, &config) != cudaSuccess) times.active = 0;
  cudaGetLastError();
  if (times.active == 0) return times;
  config.dynamicSmemBytes = 0;
  times.barrier_us = run(cluster_exchange<uint2>, true);
  times.push8_us = run(cluster_exchange<uint2>, false);
  times.push16_us = run(cluster_exchange<uint4>, false);
  times.wrong = wrong.host()[0];
  return times;
}

// ---- instructions -------------------------------------------------------------------------------------

enum Kind { kBf16, kF16, kTf32 };

__global__ void one_mma(Kind kind, const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = threadIdx.x;
  float sums[4];
  for (int r = 0; r < 4; ++r) sums[r] = d[lane * 4 + r];
  if (kind == kBf16) mma_bf16(sums, a + lane * 4, b[lane * 2], b[lane * 2 + 1]);
  if (kind == kF16) mma_f16(sums, a + lane * 4, b[lane * 2], b[lane * 2 + 1]);
  if (kind == kTf32) mma_tf32(sums, a + lane * 4, b[lane * 2], b[lane * 2 + 1]);
  for (int r = 0; r < 4; ++r) d[lane * 4 + r] = sums[r];
}

float value(Kind kind, uint32_t word, int e) {
  if (kind == kTf32) {
    float v;
    std::memcpy(&v, &word, sizeof v);
    return v;
  }
  const uint16_t bits = static_cast<uint16_t>(word >> 16 * e);
  if (kind == kBf16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float v;
    std::memcpy(&v, &wide, sizeof v);
    return v;
  }
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}

// Small integers, whose products every format holds exactly: the layout of PTX's fragments is right or it is not.
double mma_error(Kind kind) {
  const int P = kind == kTf32 ? 1 : 2, K = 8 * P;
  std::mt19937 random(kind);
  const auto small = [&] { return static_cast<float>(static_cast<int>(random() % 9) - 4); };
  const auto pack = [&](float v) -> uint32_t {
    uint32_t word;
    std::memcpy(&word, &v, sizeof word);
    if (kind == kTf32) return word;
    return kind == kBf16 ? word >> 16 : __half_as_ushort(__float2half(v));
  };
  std::vector<uint32_t> a(128), b(64);
  std::vector<float> d(128);
  for (auto* words : {&a, &b}) {
    for (uint32_t& word : *words) {
      word = pack(small());
      if (P == 2) word |= pack(small()) << 16;
    }
  }
  for (float& v : d) v = small();
  double A[16][16], B[16][8], D[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, c = lane & 3;
    for (int r = 0; r < 4; ++r) {
      for (int e = 0; e < P; ++e)
        A[g + 8 * (r & 1)][P * c + (r >> 1) * (K / 2) + e] = value(kind, a[lane * 4 + r], e);
      D[g + 8 * (r >> 1)][2 * c + (r & 1)] = d[lane * 4 + r];
    }
    for (int r = 0; r < 2; ++r) {
      for (int e = 0; e < P; ++e) B[P * c + r * (K / 2) + e][g] = value(kind, b[lane * 2 + r], e);
    }
  }
  const Buffer<uint32_t> device_a(a), device_b(b);
  const Buffer<float> device_d(d);
  one_mma<<<1, 32>>>(kind, device_a.data, device_b.data, device_d.data);
  const std::vector<float> found = device_d.host();
  double worst = 0;
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      const int row = (lane >> 2) + 8 * (r >> 1), column = 2 * (lane & 3) + (r & 1);
      double sum = D[row][column];
      for (int k = 0; k < K; ++k) sum += A[row][k] * B[k][column];
      worst = std::max(worst, std::fabs(sum - found[lane * 4 + r]));
    }
  }
  return worst;
}

struct Scalars {
  float tanh, exp2, reciprocal;
  uint32_t tf32;
};
__global__ void scalars(const float* v, int n, Scalars* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = {tanh_approx(v[i]), exp2_approx(v[i]), reciprocal_approx(v[i]), to_tf32(v[i])};
}

struct ScalarErrors {
  double tanh = 0, exp2 = 0, reciprocal = 0;  // relative
  int tf32 = 0;                               // results that are not the nearest number, ties away from zero
};
ScalarErrors scalar_errors() {
  const int n = 1 << 20;
  std::mt19937 random(3);
  std::uniform_real_distribution<float> exponent(-20, 6.5f);
  std::vector<float> v(n);
  for (float& x : v) x = std::exp2(exponent(random)) * (random() & 1 ? 1 : -1);
  const Buffer<float> device_v(v);
  const Buffer<Scalars> device_out(n);
  scalars<<<(n + 255) / 256, 256>>>(device_v.data, n, device_out.data);
  const std::vector<Scalars> out = device_out.host();
  ScalarErrors worst;
  const auto relative = [](double found, double want) { return std::fabs(found - want) / std::fabs(want); };
  for (int i = 0; i < n; ++i) {
    const double x = v[i];
    worst.tanh = std::max(worst.tanh, relative(out[i].tanh, std::tanh(x)));
    worst.exp2 = std::max(worst.exp2, relative(out[i].exp2, std::exp2(x)));
    worst.reciprocal = std::max(worst.reciprocal, relative(out[i].reciprocal, 1 / x));
    uint32_t bits;
    std::memcpy(&bits, &v[i], sizeof bits);
    worst.tf32 += out[i].tf32 != ((bits + 0x1000u) & 0xffffe000u);
  }
  return worst;
}

}  // namespace

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");

  std::printf("{\n \"device\": \"%s\",\n \"sms\": %d,\n", device.name, device.multiProcessorCount);
  std::printf(" \"launch_us\": %.3f,\n \"graph_launch_us\": %.3f,\n", launch_us(stream), graph_launch_us(stream));
  const Chase chase = l2_round_trip(stream);
  std::printf(" \"l2_round_trip_ns\": %.1f,\n \"l2_round_trip_cycles\": %.1f,\n", chase.ns, chase.cycles);
  std::printf(" \"flag_exchange_us\": {");
  const char* separator = "";
  bool ok = true;
  for (int blocks : {2, 16, 32, 64, 128}) {
    if (blocks > device.multiProcessorCount) continue;
    const double us = exchange_us(stream, blocks);
    ok = ok && us > 0;
    std::printf("%s\"%d\": %.3f", separator, blocks, us);
    separator = ", ";
  }
  std::printf("},\n \"clusters\": {");
  separator = "";
  for (int ctas : {4, 8, 16}) {
    if (device.major < 9) break;
    const ClusterTimes times = cluster_times(stream, ctas);
    ok = ok && times.wrong == 0;
    std::printf("%s\"%d\": {\"active\": %d, \"barrier_us\": %.3f, \"push8_us\": %.3f, \"push16_us\": %.3f, ",
                separator, ctas, times.active, times.barrier_us, times.push8_us, times.push16_us);
    std::printf("\"wrong\": %u}", times.wrong);
    separator = ", ";
  }
  const double bf16 = mma_error(kBf16), f16 = mma_error(kF16), tf32 = mma_error(kTf32);
  const ScalarErrors scalar = scalar_errors();
  // PTX states 2^-11 for tanh, 2^-22 for ex2 (2^-22.5 from sm_75 on) and 1 ulp for rcp; a little for the host's
  // own rounding.
  ok = ok && bf16 == 0 && f16 == 0 && tf32 == 0 && scalar.tf32 == 0;
  ok = ok && scalar.tanh <= 0x1.1p-11 && scalar.exp2 <= 0x1.1p-22 && scalar.reciprocal <= 0x1.1p-23;
  std::printf("},\n \"mma_error\": {\"bf16\": %g, \"f16\": %g, \"tf32\": %g},\n", bf16, f16, tf32);
  std::printf(" \"relative_error\": {\"tanh_approx\": %.3g, \"exp2_approx\": %.3g, \"reciprocal_approx\": %.3g},\n",
              scalar.tanh, scalar.exp2, scalar.reciprocal);
  std::printf(" \"to_tf32_wrong\": %d,\n \"ok\": %s\n}\n", scalar.tf32, ok ? "true" : "false");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return ok ? 0 : 1;
}
