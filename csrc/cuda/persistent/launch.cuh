// Host side of both kernels: what surrounds a launch.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/device/launch.cuh"
#include "cuda/persistent/kernel.cuh"

namespace fastrnn::cuda {

// A tensor that the kernels read or write by pairs: its address, the element's size, the distance of its rows.
struct PairedTensor {
  const void* data;
  size_t element;
  int64_t row_stride;
};

inline bool pairs_are_whole(std::initializer_list<PairedTensor> tensors, int64_t H) {
  return H % 2 == 0 && std::all_of(tensors.begin(), tensors.end(), [](const PairedTensor& t) {
           return reinterpret_cast<uintptr_t>(t.data) % (2 * t.element) == 0 && t.row_stride % 2 == 0;
         });
}

// Neighbouring elements that one load may take of matrices of whole rows: 4, 2 or 1. A row's beginnings are multiples
// of so many, and no load reaches beyond the row's `columns`.
inline int elements_at_once(const void* const* data, const int64_t* strides, int count, size_t element,
                            int64_t columns) {
  int at_once = 4;
  const auto fits = [&](int i) {
    return reinterpret_cast<uintptr_t>(data[i]) % (at_once * element) == 0 && strides[i] % at_once == 0 &&
           columns % at_once == 0;
  };
  for (int i = 0; i < count; ++i) {
    while (at_once > 1 && !fits(i)) at_once /= 2;
  }
  return at_once;
}

// Whether the kernels of whole tiles take the layer (OneCtaWhole): every tile of units is whole, every row runs all
// steps as one sequence, every pair lies whole, and nobody has a gradient for every step's c.
template <class Params>
bool tiles_are_whole(const Params& p, const PersistentGeometry& g, const Cut& cut) {
  bool whole = g.tier == Tier::kOneCta && p.shape.H % kTileUnits == 0 && cut.whole_pairs && !p.row_offsets &&
               !p.lengths && !p.resets;
  if constexpr (std::is_same_v<Params, PersistentBackward>) whole = whole && !p.grad_cells;
  return whole;
}

inline Cut cut_of(const PersistentGeometry& g, const LayerShape& shape, void* workspace, uint32_t wait_ticks) {
  Cut cut = {};
  cut.N = shape.rows();
  cut.unit_tiles = g.unit_tiles;
  cut.ctas_per_replica = g.ctas_per_replica;
  cut.replicas = g.replicas;
  cut.n_tiles = g.n_tiles;
  cut.tile_slots = g.unit_tiles;
  if (g.tier == Tier::kCluster) {
    cut.cta_tiles = g.units_per_cta / kTileUnits;
    cut.k_split = g.k_split;
    cut.k_more = g.k_more;
    cut.peers = g.peers;
    cut.tile_slots = g.peers * cut.cta_tiles;
    cut.kept_offset = static_cast<int>(cluster_exchange_bytes(g) / 4);
    cut.slot_words = static_cast<int>(cluster_received_bytes(g) / 4);
    cut.owner_factor = (1 << 16) / cut.cta_tiles + 1;
    cut.operand_words = cluster_operand_bytes(g) / 4;
  } else {
    cut.operand_words =
        operand_words(cut.tile_slots, g.n_tiles, g.pass == Pass::kForward ? 1 : gates_of(g.cell), g.precision);
  }
  if (g.tier == Tier::kGrid) {
    cut.copies_offset = static_cast<int>(grid_parts_bytes(g) / 4);
    cut.copies_ahead = g.copies_ahead;
    cut.kept_offset = cut.copies_offset + static_cast<int>(g.copies_ahead * grid_piece_bytes(g) / 4);
  }
  cut.wait_ticks = wait_ticks ? wait_ticks : kWaitTicks;
  if (g.tier != Tier::kOneCta) {
    cut.status = status_on_device();
    cut.failure = {.code = kStatusWaitTimedOut,
                   .tier = g.tier,
                   .cell = shape.cell,
                   .T = shape.T,
                   .B = shape.B,
                   .H = shape.H,
                   .pass = g.pass,
                   .precision = g.precision,
                   .D = shape.D,
                   .ctas_per_replica = g.ctas_per_replica};
  }
  if (workspace) {
    cut.error = static_cast<uint32_t*>(workspace);
    cut.flags = reinterpret_cast<uint64_t*>(cut.error + kLineBytes / 4);
    cut.operands = cut.error + flags_bytes(g.replicas * g.D) / 4;
  }
  return cut;
}

// cudaErrorCooperativeLaunchTooLarge unless the grid fits the device at once.
inline int check_occupancy(const void* kernel, const PersistentGeometry& g) {
  int device = 0, sms = 0, ctas_per_sm = 0;
  int error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&ctas_per_sm, kernel, g.threads, g.shared_bytes);
  }
  if (error != cudaSuccess) return error;
  return static_cast<int64_t>(ctas_per_sm) * sms >= g.ctas ? cudaSuccess : cudaErrorCooperativeLaunchTooLarge;
}

// Clusters like this launch's that the device runs at once: 0 where there is no room for one, where the device has
// no such cluster, or where the kernel was compiled for a device without them. An answer is asked for once, as it
// takes a while; where there was none (0, too) the next launch asks again.
inline int active_clusters(const void* kernel, const cudaLaunchConfig_t& config, int cluster) {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, unsigned, size_t>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::tuple key(kernel, device, cluster, config.blockDim.x, config.dynamicSmemBytes);
  if (const auto entry = known.find(key); entry != known.end()) return entry->second;
  cudaFuncAttributes attributes = {};
  int clusters = 0, error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess && attributes.ptxVersion >= 90) {
    if (cluster > 8) {  // more than every device with clusters has
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // the runtime's memory of it
    return 0;
  }
  known.emplace(key, clusters);
  return clusters;
}

template <class Params>
int launch_persistent(void (*kernel)(Params, Cut), const Params& p, const PersistentGeometry& g, const Cut& cut,
                      void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const void* function = reinterpret_cast<const void*>(kernel);
  int error = allow_shared(function, g.shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(g.ctas));
  config.blockDim = dim3(static_cast<unsigned>(g.threads));
  config.dynamicSmemBytes = static_cast<size_t>(g.shared_bytes);
  config.stream = cuda_stream;
  if (g.tier == Tier::kGrid) {
    error = check_occupancy(function, g);
    if (error == cudaSuccess) error = cudaMemsetAsync(cut.error, 0, flags_bytes(g.replicas * g.D), cuda_stream);
    if (error != cudaSuccess) return error;
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  if (g.tier == Tier::kCluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(g.ctas_per_replica);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (g.tier != Tier::kOneCta) {
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  if (g.tier == Tier::kCluster && active_clusters(function, config, g.ctas_per_replica) == 0) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  error = cudaLaunchKernelEx(&config, kernel, p, cut);
  if (g.tier == Tier::kCluster &&
      error == cudaErrorInvalidClusterSize) {  // the room has gone since it was asked about
    cudaGetLastError();
    return cudaErrorCooperativeLaunchTooLarge;
  }
  return error;
}

// Each in a file of its own, <pass>_<cell>.cu: instances compile side by side.
template <class Kind>
int launch_forward(const PersistentForward& p, const PersistentGeometry& g, const Cut& cut, void* stream);
template <class Kind>
int launch_backward(const PersistentBackward& p, const PersistentGeometry& g, const Cut& cut, void* stream);

// f<Precision, Exchange>() of the geometry.
template <class F>
int with_instance(const PersistentGeometry& g, const Cut& cut, F f) {
  const auto with_exchange = [&]<Precision precision>() {
    if (cut.whole_tiles) return f.template operator()<precision, OneCtaWhole>();
    if (g.tier == Tier::kOneCta) return f.template operator()<precision, OneCta>();
    if constexpr (precision != Precision::kFloat32) {
      if (g.tier == Tier::kCluster) return f.template operator()<precision, Cluster>();
    }
    return f.template operator()<precision, Grid>();
  };
  switch (g.precision) {
    case Precision::kFloat32:
      return with_exchange.template operator()<Precision::kFloat32>();
    case Precision::kTf32:
      return with_exchange.template operator()<Precision::kTf32>();
    case Precision::kBFloat16:
      return with_exchange.template operator()<Precision::kBFloat16>();
    case Precision::kHalf:
      return with_exchange.template operator()<Precision::kHalf>();
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastrnn::cuda
