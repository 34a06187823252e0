// The switches that tests have over the emulator, as operators beside those of csrc/ops/schema.cpp in a namespace of
// their own (FASTRNN_NAMESPACE). The kernels and the host code around them are csrc/cuda's own, compiled with the
// twins before it.
#include <torch/csrc/stable/library.h>

#include "cuda/device/status.h"
#include "cuda/torch/device_properties.h"
#include "cuda/torch/runtime.h"
#include "cuda/torch/trust.h"
#ifdef EMU_RACE
#include "emu_race_hooks.inl"
#endif

namespace {

using torch::stable::Tensor;

// The scheduler's seed, how many blocks of a plain launch run at once (0: by the seed; -n: n of any launch), the
// fault in force.
void configure(int64_t seed, int64_t resident, int64_t fault) {
  emu::opt.seed = static_cast<uint64_t>(seed);
  emu::opt.resident = static_cast<int>(resident);
  emu::opt.fault = static_cast<int>(fault);
}

// As in a new process, but for the device: no trouble, nothing proven, nothing in quarantine, nobody has given up,
// nothing has run.
void begin_anew() {
  emu::opt = {};
  fastrnn::cuda::clear_status(0);
  fastrnn::cuda::DeviceTrust& here = fastrnn::cuda::trust_of(0);
  const std::lock_guard lock(here.mutex);
  here.trust = {};
  here.warned = {};
  for (auto& passes : fastrnn::cuda::ran()) {
    for (auto& number : passes) number = 0;
  }
}

// The device that plans are made for.
void device(int64_t capability, int64_t sms, int64_t shared_bytes) {
  fastrnn::cuda::emulated_device() = {static_cast<int>(capability),
                                      static_cast<int>(sms),
                                      shared_bytes,
                                      50 << 20,
                                      true,
                                      fastrnn::cuda::max_cluster_of(static_cast<int>(capability))};
}

// The largest cluster that there is room for on it, whatever the plan thought.
void room_for_clusters(int64_t blocks) { emu::opt.max_cluster = static_cast<int>(blocks); }

// The signal of a launch that gets lost (-1: none), whether loads may be old until an acquire, whether every pair of
// blocks has its own delay, whether races are errors.
void trouble(int64_t lose, bool stale, bool apart, bool race) {
  emu::opt.lose = lose;
  emu::opt.stale = stale;
  emu::opt.apart = apart;
  emu::opt.race = race;
}
void approximate(int64_t side) { emu::opt.side = static_cast<int>(side); }
// Seconds that passed in the last launch while nothing could run, and the signals that were sent in it.
std::tuple<double, int64_t> past() { return {emu::S.clock * 1e-9, emu::S.signals}; }

// The device's status: code, tier, cell, T, B, H, step, pass, precision, D, CTAs a replica. Then it is cleared.
std::vector<int64_t> take_status() {
  const fastrnn::cuda::Status s = fastrnn::cuda::read_status(0);
  fastrnn::cuda::clear_status(0);
  return {s.code,
          static_cast<int64_t>(s.tier),
          static_cast<int64_t>(s.cell),
          s.T,
          s.B,
          s.H,
          s.step,
          static_cast<int64_t>(s.pass),
          static_cast<int64_t>(s.precision),
          s.D,
          s.ctas_per_replica};
}

// So many launches and queries of clusters' room to come fail; whether there is code for the device.
void fail(int64_t launches, int64_t queries, bool no_image) {
  emu::opt.fail_launches = static_cast<int>(launches);
  emu::opt.fail_queries = static_cast<int>(queries);
  emu::opt.no_image = no_image;
}

// As a kernel leaves it that gave up.
void plant_status(int64_t code, int64_t tier, int64_t T, int64_t B, int64_t H, int64_t step) {
  fastrnn::cuda::Status status;
  status.code = static_cast<uint32_t>(code);
  status.tier = static_cast<fastrnn::Tier>(tier);
  status.T = T;
  status.B = B;
  status.H = H;
  status.step = step;
  *fastrnn::cuda::status_on_device() = status;
}

// A contiguous copy of x that ends at a guard page.
Tensor guarded(const Tensor& x) {
  const auto sizes = x.sizes();
  Tensor out = fastrnn::cuda::empty(std::vector<int64_t>(sizes.begin(), sizes.end()), x.scalar_type(), 0);
  return torch::stable::copy_(out, x);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTRNN_NAMESPACE, m) {
  m.def("begin_anew() -> ()");
  m.def("configure(int seed, int resident=0, int fault=0) -> ()");
  m.def("device(int capability, int sms, int shared_bytes) -> ()");
  m.def("room_for_clusters(int blocks) -> ()");
  m.def("trouble(int lose=-1, bool stale=True, bool apart=True, bool race=True) -> ()");
  m.def("approximate(int side) -> ()");
  m.def("past() -> (float seconds, int signals)");
  m.def("take_status() -> int[]");
  m.def("fail(int launches, int queries=0, bool no_image=False) -> ()");
  m.def("plant_status(int code, int tier, int T, int B, int H, int step) -> ()");
  m.def("guarded(Tensor x) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, CPU, m) { m.impl("guarded", TORCH_BOX(&guarded)); }
STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("begin_anew", TORCH_BOX(&begin_anew));
  m.impl("configure", TORCH_BOX(&configure));
  m.impl("device", TORCH_BOX(&device));
  m.impl("room_for_clusters", TORCH_BOX(&room_for_clusters));
  m.impl("trouble", TORCH_BOX(&trouble));
  m.impl("approximate", TORCH_BOX(&approximate));
  m.impl("past", TORCH_BOX(&past));
  m.impl("take_status", TORCH_BOX(&take_status));
  m.impl("fail", TORCH_BOX(&fail));
  m.impl("plant_status", TORCH_BOX(&plant_status));
}
