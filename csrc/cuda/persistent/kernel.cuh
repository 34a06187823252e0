// What the forward and the backward kernel share: a thread's place, the products of a step with the weights that
// its warp keeps in registers, and the three ways in which the warps exchange the operand of the next step.
//
// An exchange holds publications 0, 1, 2, ... of an operand (forward: h of every step, backward: the gates' gradient
// of every step; a cluster's backward has an exchange of its own) in two buffers, publication i in buffer i%2:
//     begin(n)     before the first: there will be n of them
//     write(i,..)  puts one of this warp's tiles into publication i
//     publish()    this warp's tiles of the publication in turn are written
//     wait(i)      returns when all of publication i is there for all warps to read
//     end()        after the last wait
// Publication i+1 overwrites i-1, so a warp may write it only when nobody reads i-1 any more. That holds if every
// warp's part of i+1 comes after its products of i, which come after wait(i): each exchange says why.
//
// tests/protocols has the grid's and the cluster's exchanges as models, every interleaving of a few CTAs with the
// mistakes that one could make (make models-check). They do not cover: more CTAs and steps, addresses, the compiler,
// and that a push leaves after the loads that its value depends on, for which PTX has no word.
//
// A wait that takes too long gives up, see params.h: `poison`, 0 until then, is NaN from there on, and every sum
// begins with it.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/device/status.cuh"
#include "cuda/persistent/fragments.cuh"
#include "cuda/persistent/memory.cuh"
#include "cuda/persistent/params.h"
#include "cuda/stepwise/kernels.h"

namespace fastrnn::cuda {

// The part of the geometry that the kernels need, and where the grid tier's memory lies.
struct Cut {
  int64_t N;
  int unit_tiles, ctas_per_replica, replicas, n_tiles;
  int tile_slots;                   // tiles of units in an operand: unit_tiles, or more where CTAs share them
  int cta_tiles, k_split, k_more;   // cluster tier: tiles of units a CTA; see PersistentGeometry
  int peers;                        // CTAs that have units
  int kept_offset;                  // grid and cluster: where weights in shared memory begin, words behind the biases
  int copies_offset, copies_ahead;  // grid: and the copies of the operand, so many pieces of it at once
  int slot_words;                   // cluster tier's backward: what a CTA receives in a step,
  int owner_factor;                 // and which CTA has a tile of units: tile * owner_factor >> 16
  bool whole_pairs;                 // every row of every tensor starts at a multiple of a pair,
  bool whole_x;                     // and every row of x
  bool whole_tiles;                 // and all tiles of units are whole, and all rows run all steps
  int weights_at_once;              // elements of w_hh that a load takes: 4, 2 or 1,
  int inputs_at_once;               // and of w_ih
  uint32_t* error;                  // grid tier: the workspace's first word,
  uint64_t* flags;                  // then a flag a replica, a line each,
  uint32_t* operands;               // then its two buffers of operand_words
  int64_t operand_words;            // of a buffer
  uint32_t wait_ticks;              // before a wait for other CTAs gives up,
  Status* status;                   // where it says so,
  Status failure;                   // and what, but for the step
};

// ---------------------------------------------------------------- cells

// A cell as the kernels name it: the equations of csrc/cells over a math policy M. RNN's nonlinearity is chosen
// at run time, the same for all threads: one kernel for both.
struct Lstm {
  static constexpr CellKind kKind = CellKind::kLstm;
  template <class M>
  using Of = LstmCell<M>;
};
struct Gru {
  static constexpr CellKind kKind = CellKind::kGru;
  template <class M>
  using Of = GruCell<M>;
};
struct Rnn {
  static constexpr CellKind kKind = CellKind::kRnnTanh;
  template <class M>
  struct Of : RnnTanhCell<M> {};
};

template <class Kind, class M>
__device__ __forceinline__ void cell_forward(bool relu, const float* pre, float rec, float h_prev, float c_prev,
                                             float* saved, float& c, float& h) {
  if (Kind::kKind == CellKind::kRnnTanh && relu) {
    RnnReluCell<M>::forward(pre, rec, h_prev, c_prev, saved, c, h);
  } else {
    Kind::template Of<M>::forward(pre, rec, h_prev, c_prev, saved, c, h);
  }
}
template <class Kind, class M>
__device__ __forceinline__ void cell_backward(bool relu, const float* saved, float c_prev, float c, float h_prev,
                                              float h, float dh, float dc, float* dpre, float& drec, float& dc_prev,
                                              float& dh_prev) {
  if (Kind::kKind == CellKind::kRnnTanh && relu) {
    RnnReluCell<M>::backward(saved, c_prev, c, h_prev, h, dh, dc, dpre, drec, dc_prev, dh_prev);
  } else {
    Kind::template Of<M>::backward(saved, c_prev, c, h_prev, h, dh, dc, dpre, drec, dc_prev, dh_prev);
  }
}

// ---------------------------------------------------------------- waits

constexpr uint32_t kNaN = 0x7fffffffu;

// How much longer a wait may take. What passes between two looks counts for a second at most: a device that stood
// still as a whole (a debugger, a machine asleep) gets the rest of its time when it goes on.
struct Patience {
  static constexpr uint32_t kMostALook = 954;
  uint32_t left, last;

  __device__ __forceinline__ explicit Patience(uint32_t ticks) : left(ticks), last(ticks_now()) {}
  __device__ __forceinline__ bool ended() {
    const uint32_t now = ticks_now(), passed = now - last < kMostALook ? now - last : kMostALook;
    last = now;
    if (passed >= left) return true;
    left -= passed;
    return false;
  }
};

// Publication `i` never came.
__device__ __forceinline__ void report_missing(const Cut& cut, int i) {
  report(cut.status, cut.failure, i + (cut.failure.pass == Pass::kBackward));
}

// ---------------------------------------------------------------- exchanges

// All units of a direction in one CTA, a warp a tile of units; the buffers are in shared memory.
struct OneCta {
  static constexpr Tier kTier = Tier::kOneCta;
  static constexpr bool kSplitsK = false, kKeepsInShared = false, kCopies = false, kCompiled = true;
  static constexpr int kStride = 1;
  static __device__ __forceinline__ int cta_tiles(const Cut& cut) { return cut.unit_tiles; }
  static constexpr __device__ __forceinline__ int k_split(const Cut&) { return 1; }

  uint32_t* buffers;
  int64_t words;

  __device__ __forceinline__ OneCta(const Cut& cut, uint32_t* /*shared*/, uint32_t* rest, int /*replica*/)
      : buffers(rest), words(cut.operand_words) {}

  __device__ __forceinline__ bool begin(int) { return true; }
  __device__ __forceinline__ void end() {}
  __device__ __forceinline__ float4* parts() const { return nullptr; }
  __device__ __forceinline__ uint32_t* slot(int i) const { return buffers + (i & 1) * words; }
  template <class F, class Rows>
  __device__ __forceinline__ void write(int i, int64_t offset, int lane, const Rows& rows) const {
    F::write(slot(i) + offset, lane, rows);
  }
  __device__ __forceinline__ void publish() {}
  // One barrier a step. It protects both ways: what was written before it is read after it, and a warp that
  // writes publication i+1 after wait(i) knows that every warp is through with its products of i-1.
  __device__ __forceinline__ const uint32_t* wait(int i) {
    __syncthreads();
    return slot(i);
  }

  static constexpr float poison = 0;
};

// The same for layers that have whole tiles only (Cut::whole_tiles): forward_whole.cuh, backward_whole.cuh.
struct OneCtaWhole : OneCta {
  using OneCta::OneCta;
};
template <class Exchange>
constexpr bool kWholeTiles = std::is_same_v<Exchange, OneCtaWhole>;

// A CTA a tile of units; its warps share the products by K and meet in shared memory, the CTAs of a replica in the
// L2 cache, from where each warp copies what it multiplies into shared memory. Warp n finishes tile n of the rows.
struct Grid {
  static constexpr Tier kTier = Tier::kGrid;
  static constexpr bool kSplitsK = true, kKeepsInShared = true, kCopies = true, kCompiled = true;
  static constexpr int kStride = kGridWarps;
  static constexpr __device__ __forceinline__ int cta_tiles(const Cut&) { return 1; }
  static constexpr __device__ __forceinline__ int k_split(const Cut&) { return kGridWarps; }

  const Cut& cut;
  uint32_t* failure;  // in shared memory: the CTA's poison
  uint32_t* rest;
  int replica;
  float poison = 0;

  __device__ __forceinline__ Grid(const Cut& cut, uint32_t* shared, uint32_t* rest, int replica)
      : cut(cut), failure(shared + kFailureWord), rest(rest), replica(replica) {
    // Read after the first wait's barrier, and written by this thread alone.
    if (polls()) *failure = 0;
  }

  __device__ __forceinline__ bool begin(int) { return true; }
  __device__ __forceinline__ void end() {}
  __device__ __forceinline__ float4* parts() const { return reinterpret_cast<float4*>(rest); }
  static constexpr uint64_t kAbandoned = 1ull << 63;  // in the flag, once a CTA of the replica has given up
  __device__ __forceinline__ uint64_t* flag() const { return cut.flags + replica * (kLineBytes / 8); }
  __device__ __forceinline__ uint32_t* slot(int i) const {
    return cut.operands + static_cast<int64_t>(2 * replica + (i & 1)) * cut.operand_words;
  }
  // A CTA that gave up waiting writes and counts nothing any more: its peers cannot go on, and give up too.
  template <class F, class Rows>
  __device__ __forceinline__ void write(int i, int64_t offset, int lane, const Rows& rows) const {
    if (!gave_up()) F::write(slot(i) + offset, lane, rows);
  }
  // Every finishing warp counts for itself: its lanes' stores, joined by __syncwarp, are released by one lane.
  __device__ __forceinline__ void publish() {
    __syncwarp();
    if (threadIdx.x % 32 == 0 && !gave_up()) add_release(flag(), 1);
  }
  __device__ __forceinline__ bool gave_up() const { return poison != 0; }  // NaN is not 0
  // Of the last warp, which finishes rows only where there are as many tiles of them as warps: it waits for nothing
  // else, while the finishing warps still read the next step's inputs and write what nobody waits for.
  static __device__ __forceinline__ bool polls() { return threadIdx.x == (kGridWarps - 1) * 32; }
  // The flag counts on over the publications: all of i are there at (i+1) * arrivals. One thread polls and
  // acquires for the CTA, the barrier passes it on. A warp publishes i+1 after the barrier of the sums (see
  // Products), which each warp of its CTA enters with its products of i done, so the whole flag for i+1 means that
  // nobody reads i any more and i+2 may overwrite it. The barrier also protects the sums of step i from those of
  // i+1: finishing warps enter it when they have read them.
  __device__ __forceinline__ const uint32_t* wait(int i) {
    if (polls() && *failure == 0) {
      const uint64_t arrivals = static_cast<uint64_t>(cut.ctas_per_replica * cut.n_tiles);
      if (!counted(static_cast<uint64_t>(i + 1) * arrivals, i)) *failure = kNaN;
    }
    __syncthreads();
    poison = __uint_as_float(*failure);  // before the barrier of the sums: the polling thread comes back after it
    return slot(i);
  }
  __device__ __forceinline__ uint64_t arrived() const { return load_acquire(flag()); }
  // Polls until the flag has reached `target`. False: it took too long, here or elsewhere in the replica.
  __device__ __forceinline__ bool counted(uint64_t target, int i) const {
    uint64_t count = arrived();
    if (count < target) {
      Patience patience(cut.wait_ticks);
#pragma unroll 1
      do {
#pragma unroll 1
        for (int polls = 0; polls < kPollsALook && count < target; ++polls) count = arrived();
      } while (count < target && !patience.ended());
      if (count < target) {
        report_missing(cut, i);
        *cut.error = 1;
        or_relaxed(flag(), kAbandoned);
        return false;
      }
    }
    return count < kAbandoned;
  }
};

// The two barriers (mbarriers) of a CTA in a cluster. Publication i counts its bytes in at barrier i%2 as they
// arrive.
struct ClusterBarriers {
  const Cut& cut;
  uint32_t* shared;  // two barriers, 8 bytes each; then the failure word: who waits here should not
  uint32_t bytes;    // of a publication, as far as this CTA receives it
  int publications = 0;
  float poison = 0;  // of this warp

  // All threads of the CTA; `takes_part` is false where nothing will come.
  __device__ __forceinline__ void begin(int n, bool takes_part) {
    publications = n;
    if (takes_part && threadIdx.x == 0) {
      shared[kFailureWord] = 0;
      barrier_init(address(0));
      barrier_init(address(1));
      barrier_init_fence();
      if (n > 0) arm(0);
      if (n > 1) arm(1);
    }
    cluster_barrier();  // from here on every CTA is there, with its barriers
  }
  // Every publication has been waited for, so nothing is on its way any more; where one was given up, in whatever
  // CTA, all give it time to arrive. This barrier says it to the hardware: no CTA's memory goes before all its peers
  // are through.
  __device__ __forceinline__ void end() {
    if (flag_is_raised(failure())) {
      Patience patience(2);
#pragma unroll 1
      while (!patience.ended()) take_a_nap();
    }
    cluster_barrier();
  }

  __device__ __forceinline__ uint32_t address(int i) const { return shared_address(shared + 2 * (i & 1)); }
  __device__ __forceinline__ uint32_t failure() const { return shared_address(shared + kFailureWord); }
  __device__ __forceinline__ bool gave_up() const { return poison != 0; }  // NaN is not 0
  // Publication i will arrive. Only where one follows: a barrier that waits for bytes that never come is broken.
  __device__ __forceinline__ void arm(int i) { barrier_expect(address(i), bytes); }
  // By every publication's readers, whole warps, the CTA's first one among them. Lanes may see the phase end at
  // different times, but go on together.
  __device__ __forceinline__ void wait(int i) {
    if (gave_up()) return;
    if (!phase_over(i) && !phase_over_later(i)) return;
    if (threadIdx.x == 0 && i + 2 < publications) arm(i + 2);
  }
  __device__ __forceinline__ bool phase_over(int i) const {
    return __all_sync(~0u, try_phase(address(i), (i >> 1) & 1)) != 0;
  }
  // Until it is. False: it took too long, here or elsewhere in the cluster.
  __device__ __forceinline__ bool phase_over_later(int i) {
    Patience patience(cut.wait_ticks);
    bool too_long, told;
#pragma unroll 1
    do {
#pragma unroll 1
      for (int polls = 0; polls < kPollsALook; ++polls) {
        if (phase_over(i)) return true;
      }
      too_long = __any_sync(~0u, patience.ended()) != 0;
      told = __any_sync(~0u, flag_is_raised(failure())) != 0;
    } while (!too_long && !told);
    poison = __uint_as_float(kNaN);
    if (!told && threadIdx.x % 32 == 0) {
      report_missing(cut, i);
#pragma unroll 1
      for (int peer = 0; peer < cut.peers; ++peer) raise_flag(peer_address(failure(), peer));
    }
    __syncwarp();
    return false;
  }
};

// A direction's weights in the CTAs of a thread block cluster, `cta_tiles` tiles of units each; the warps of a tile
// share its products by K. Every CTA has both buffers whole in its own shared memory: a finishing warp pushes its
// tiles to all of them, its own included, and the bytes count themselves in at a barrier (mbarrier) of the buffer.
// Nothing else orders the CTAs: there is no barrier of the cluster among the steps.
//
// Why publication i+1 may overwrite i-1. Who pushes a tile of i+1 into this CTA has seen all of i arrive (wait), so
// also the tiles of this CTA's own finishing warps; and those were pushed when all warps of this CTA had read what
// they wanted of i-1: a warp that reads i-1 either pushes a tile of i itself, after its products, or meets those
// that do at the __syncthreads of the sums. Hence every warp that reads also pushes or meets one that does, padded
// tiles are pushed like others, and a CTA's own tiles go the same way as its peers'. By the same argument no warp
// misses a phase of a barrier, and the parts of the sums of i are read when those of i+1 are written.
//
// A CTA receives for 8 rows and a step, half types: 16*H bytes. That is forward. Backward would receive as much for
// every gate, so it has an exchange of its own: backward_scattered.cuh.
struct Cluster {
  static constexpr Tier kTier = Tier::kCluster;
  static constexpr bool kSplitsK = true, kKeepsInShared = true, kCopies = false, kCompiled = kHasClusters;
  static constexpr int kStride = 1;
  static __device__ __forceinline__ int cta_tiles(const Cut& cut) { return cut.cta_tiles; }
  static __device__ __forceinline__ int k_split(const Cut& cut) { return cut.k_split; }

  const Cut& cut;
  ClusterBarriers barriers;
  uint32_t* buffers;
  int rank;
  float poison = 0;

  __device__ __forceinline__ Cluster(const Cut& cut, uint32_t* shared, uint32_t* rest, int replica)
      : cut(cut),
        barriers{cut, shared, static_cast<uint32_t>(cut.operand_words * 4)},
        buffers(rest),
        rank(static_cast<int>(blockIdx.x) - replica * cut.ctas_per_replica) {}

  // False for a CTA without units, which has nothing to do.
  __device__ __forceinline__ bool begin(int n) {
    barriers.begin(n, rank < cut.peers);
    return rank < cut.peers;
  }
  __device__ __forceinline__ void end() { barriers.end(); }

  __device__ __forceinline__ float4* parts() const {
    return reinterpret_cast<float4*>(buffers + 2 * cut.operand_words);
  }
  __device__ __forceinline__ uint32_t* slot(int i) const { return buffers + (i & 1) * cut.operand_words; }

  // To the peers in turn, beginning behind this one: not all CTAs push into the same one at once. A warp that gave up
  // waiting pushes nothing: its peers cannot go on, and give up too.
  template <class F, class Rows>
  __device__ __forceinline__ void write(int i, int64_t offset, int lane, const Rows& rows) const {
    int target;
    const typename F::Words words = F::gather(lane, rows, target);
    const uint32_t data = shared_address(slot(i) + offset + target * F::kWords), bar = barriers.address(i);
    int peer = rank;
    if (barriers.gave_up()) return;
#pragma unroll 4
    for (int n = 0; n < cut.peers; ++n) {
      peer = peer + 1 < cut.peers ? peer + 1 : 0;
      push(peer_address(data, peer), words, peer_address(bar, peer));
    }
  }
  __device__ __forceinline__ void publish() {}
  __device__ __forceinline__ const uint32_t* wait(int i) {
    barriers.wait(i);
    poison = barriers.poison;
    return slot(i);
  }
};

// ---------------------------------------------------------------- a thread's place

struct Position {
  int direction;
  int replica;     // of all directions'
  int unit_tile;   // of the warp's products and sums
  int cta_tile;    // the first one of its CTA
  int split;       // warps that share the products of its tile of units
  int first, end;  // tiles of K that the warp multiplies: first, first + Exchange::kStride, ... below end
  int row_tile;    // that the warp finishes, in its replica
  bool finishes;   // whether it does
  int lane, warp;
  int unit;   // the first of this lane's two,
  int units;  // how many of them exist
  int row;    // the batch row of this lane's first of two

  __device__ __forceinline__ void count_units(int64_t H) { units = unit >= H ? 0 : unit + 1 == H ? 1 : 2; }
  // At the head of a step: or the addresses of every tensor's rows, the same at every step, would wait in registers.
  __device__ __forceinline__ void forget_addresses(int64_t H) {
    forget(row);
    forget(unit);
    count_units(H);
  }

  template <class Exchange>
  static __device__ __forceinline__ Position of(const LayerShape& shape, const Cut& cut) {
    Position at;
    at.lane = static_cast<int>(threadIdx.x % 32);
    at.warp = static_cast<int>(threadIdx.x / 32);
    const int cta = static_cast<int>(blockIdx.x);
    at.replica = cta / cut.ctas_per_replica;
    at.direction = at.replica / cut.replicas;
    at.split = Exchange::k_split(cut);
    int of_tile = at.warp / at.split, part = at.warp - of_tile * at.split;
    if (Exchange::kTier == Tier::kCluster && cut.k_more) {
      const int before = cut.k_more * (at.split + 1);  // warps of the tiles that have one more
      const bool more = at.warp < before;
      of_tile = more ? at.warp / (at.split + 1) : cut.k_more + (at.warp - before) / at.split;
      part = more ? at.warp - of_tile * (at.split + 1) : (at.warp - before) % at.split;
      at.split += more;
    }
    at.cta_tile = (cta - at.replica * cut.ctas_per_replica) * Exchange::cta_tiles(cut);
    at.unit_tile = at.cta_tile + of_tile;
    at.first = part;
    at.end = cut.unit_tiles;
    if (Exchange::kTier == Tier::kCluster) {
      const int tiles = part_tiles(cut.unit_tiles, at.split);
      at.first = part * tiles;
      if (at.first + tiles < at.end) at.end = at.first + tiles;
    }
    at.row_tile = part;
    at.finishes = at.row_tile < cut.n_tiles;
    at.unit = at.unit_tile * kTileUnits + 2 * (at.lane >> 2);
    at.count_units(shape.H);
    at.row = ((at.replica - at.direction * cut.replicas) * cut.n_tiles + at.row_tile) * kTileRows + 2 * (at.lane & 3);
    return at;
  }
};

}  // namespace fastrnn::cuda
