// The switches that tests have over the emulator, as operators beside those of csrc/ops/schema.cpp in a namespace of
// their own (FASTRNN_NAMESPACE). The kernels and the host code around them are csrc/cuda's own, compiled with the
// twins before it.
#include <torch/csrc/stable/library.h>

#include "cuda/device/status.h"
#include "cuda/stepwise/graphs.h"
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
  for (emu::Stream* stream : emu::device.streams) {
    stream->tasks.clear();
    stream->capture.reset();
  }
  emu::opt = {};
  emu::device.current = nullptr;
  emu::no_room = -1;
  emu::in_pool = false;
  fastrnn::cuda::release_graphs();
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

// Whether streams are queues, in which order they are worked off (emu_streams.h), and whether that is done behind
// every operator or when a test asks for it.
void streams(bool deferred, int64_t order, bool waits) {
  emu::synchronize();
  emu::opt.deferred = deferred;
  emu::opt.waits = waits;
  emu::opt.order = static_cast<uint64_t>(order);
}
void wait() { emu::synchronize(); }
// Torch's current stream from now on, 0 the default one.
void use_stream(int64_t number) { emu::device.current = emu::numbered_stream(number); }

// A program's own capture, as torch.cuda.graph makes it; its graphs, by number.
std::vector<cudaGraphExec_t>& programs_graphs() {
  static std::vector<cudaGraphExec_t> graphs;
  return graphs;
}
void begin_capture(int64_t stream, bool global_mode) {
  const cudaStream_t on = emu::numbered_stream(stream);
  fastrnn::cuda::check_cuda(
      cudaStreamBeginCapture(on, global_mode ? cudaStreamCaptureModeGlobal : cudaStreamCaptureModeThreadLocal));
  emu::stream_of(on).capture->torch_knows = true;
}
int64_t end_capture(int64_t stream) {
  cudaGraph_t graph = nullptr;
  fastrnn::cuda::check_cuda(cudaStreamEndCapture(emu::numbered_stream(stream), &graph));
  programs_graphs().push_back(graph);
  return static_cast<int64_t>(programs_graphs().size()) - 1;
}
void replay(int64_t graph, int64_t stream) {
  fastrnn::cuda::check_cuda(cudaGraphLaunch(programs_graphs().at(graph), emu::numbered_stream(stream)));
  emu::synchronize();
}

// So many captures and launches of graphs to come fail; whether there is no cuBLAS to find.
void fail_graphs(int64_t captures, int64_t launches, bool no_blas) {
  emu::opt.fail_captures = static_cast<int>(captures);
  emu::opt.fail_graphs = static_cast<int>(launches);
  emu::opt.blas = !no_blas;
}
// Captures that ended well, launches of graphs, and executable graphs that there are.
std::vector<int64_t> graphs() { return {emu::device.captures, emu::device.graph_launches, emu::device.graphs}; }

// Whether this thread's tensors are of a pool of the caller's from now on, as in torch.cuda.use_mem_pool; and how
// many of such there are.
void use_pool(bool use) { emu::in_pool = use; }
int64_t pooled() { return emu::pooled; }
// The device has no room for one of the tensors to come, the first one is 0; -1: for all.
void no_room(int64_t tensor) { emu::no_room = tensor; }

// On torch's current stream, in its turn.
void copy_late(const Tensor& to, const Tensor& from) { fastrnn::cuda::copy(to, from); }

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
  m.def("streams(bool deferred=False, int order=0, bool waits=True) -> ()");
  m.def("wait() -> ()");
  m.def("use_stream(int number) -> ()");
  m.def("begin_capture(int stream, bool global_mode) -> ()");
  m.def("end_capture(int stream) -> int");
  m.def("replay(int graph, int stream) -> ()");
  m.def("fail_graphs(int captures, int launches=0, bool no_blas=False) -> ()");
  m.def("graphs() -> int[]");
  m.def("use_pool(bool use) -> ()");
  m.def("pooled() -> int");
  m.def("no_room(int tensor) -> ()");
  m.def("plant_status(int code, int tier, int T, int B, int H, int step) -> ()");
  m.def("guarded(Tensor x) -> Tensor");
  m.def("copy_late(Tensor(a!) to, Tensor source) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, CPU, m) {
  m.impl("guarded", TORCH_BOX(&guarded));
  m.impl("copy_late", TORCH_BOX(&copy_late));
}
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
  m.impl("streams", TORCH_BOX(&streams));
  m.impl("wait", TORCH_BOX(&wait));
  m.impl("use_stream", TORCH_BOX(&use_stream));
  m.impl("begin_capture", TORCH_BOX(&begin_capture));
  m.impl("end_capture", TORCH_BOX(&end_capture));
  m.impl("replay", TORCH_BOX(&replay));
  m.impl("fail_graphs", TORCH_BOX(&fail_graphs));
  m.impl("graphs", TORCH_BOX(&graphs));
  m.impl("use_pool", TORCH_BOX(&use_pool));
  m.impl("pooled", TORCH_BOX(&pooled));
  m.impl("no_room", TORCH_BOX(&no_room));
  m.impl("plant_status", TORCH_BOX(&plant_status));
}
