#include "cuda/stepwise/graphs.h"

#include <algorithm>
#include <array>
#include <deque>
#include <exception>
#include <future>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/device/graph.h"
#include "cuda/stepwise/loop.h"

namespace fastrnn::cuda {
namespace {

// Kinds of calls without a graph that are remembered. More than have one: a program may have so many in turns.
constexpr int kMostSeen = 4 * kMostGraphs;

// Split sums of the thin products of a step; cuBLAS takes what needs no more.
constexpr int64_t kWorkspaceBytes = 8 << 20;

// Everything that two calls have alike for which one graph does.
struct Kind {
  void* stream = nullptr;
  std::vector<int64_t> facts;
  bool operator==(const Kind&) const = default;
};

Kind kind_of(const Layer& layer, Pass pass, std::initializer_list<bool> present) {
  const LayerShape& s = layer.shape();
  const RowTable& table = layer.table();
  Kind kind{layer.stream,
            {static_cast<int64_t>(pass), static_cast<int64_t>(s.cell), static_cast<int64_t>(s.dtype), layer.tf32, s.T,
             s.tensor_steps(), s.B, s.H, s.P, s.D, s.bias, table.lengths != nullptr, table.row_offsets != nullptr,
             table.resets != nullptr}};
  kind.facts.insert(kind.facts.end(), present.begin(), present.end());
  // How many rows run at a step is part of its launches; how long a row of a padded batch is, of the table's.
  if (s.packed()) kind.facts.insert(kind.facts.end(), s.batch_sizes, s.batch_sizes + s.T);
  return kind;
}

// A graph and the memory that it names.
struct Prepared {
  virtual ~Prepared() = default;
  Kind kind;
  Graph graph;
  std::optional<Tensor> workspace, lengths, resets;
  RowTable table;
  int64_t bytes = 0;
  uint64_t used = 0;  // when, see Graphs

  Tensor own(const Tensor& like) {
    Sizes sizes;
    for (int64_t i = 0; i < like.dim(); ++i) sizes.push_back(like.size(i));
    return counted(empty(sizes, like.scalar_type(), device));
  }
  std::optional<Tensor> own(const std::optional<Tensor>& like) {
    return like ? std::optional(own(*like)) : std::nullopt;
  }
  Tensor counted(const Tensor& tensor) {
    bytes += tensor.numel() * tensor.element_size();
    return tensor;
  }

  void make_tables(const Layer& layer) {
    const LayerShape& s = layer.shape();
    device = layer.device;
    table = layer.table();
    if (const int64_t n = table_size(layer)) {
      lengths = counted(empty({n}, ScalarType::Long, device));
      int64_t* const at = static_cast<int64_t*>(lengths->data_ptr());
      table.lengths = at + (n - s.B);
      if (table.row_offsets) table.row_offsets = at;
    }
    if (table.resets) {
      resets = counted(empty({s.tensor_steps() * s.B}, ScalarType::Byte, device));
      table.resets = static_cast<const uint8_t*>(resets->data_ptr());
    }
    workspace = counted(empty({kWorkspaceBytes}, ScalarType::Byte, device));
  }
  void fill_tables(const Layer& layer) const {
    const RowTable& from = layer.table();
    const auto fill = [&](const std::optional<Tensor>& to, const void* data, int64_t size) {
      check_cuda(cudaMemcpyAsync(to->data_ptr(), data, static_cast<size_t>(size), cudaMemcpyDeviceToDevice,
                                 static_cast<cudaStream_t>(layer.stream)));
    };
    // The offsets lie before the lengths, see Layer::table().
    const int64_t n = table_size(layer);
    if (lengths) fill(lengths, from.row_offsets ? from.row_offsets : from.lengths, n * int64_t{sizeof(int64_t)});
    if (resets) fill(resets, from.resets, resets->numel());
  }

 private:
  static int64_t table_size(const Layer& layer) {
    const LayerShape& s = layer.shape();
    const RowTable& table = layer.table();
    return table.lengths ? s.B + (table.row_offsets ? s.T + 1 : 0) : 0;
  }
  int device = 0;
};

struct PreparedForward : Prepared {
  ForwardSequence s;
  ForwardBuffers buffers;

  PreparedForward(const Layer& layer, const ForwardSequence& like) : s(like) {
    make_tables(layer);
    s.y = own(like.y);
    s.hn = own(like.hn);
    if (facts_of(layer.shape().cell).has_cell) s.cn = own(like.cn);
    if (s.save_gates) s.gates = own(like.gates);
    if (s.save_cells) s.cells = own(like.cells);
    s.gx = s.save_gates && like.gx.data_ptr() == like.gates.data_ptr() ? s.gates : own(like.gx);
    s.h0 = s.hn;  // nothing of the caller's stays
    s.c0.reset();
    buffers = make_buffers(layer, s, /*own_weights=*/true);
    for (const Tensor& t : {buffers.w_hh, buffers.rec}) counted(t);
  }
  void fill(const Layer& layer, const ForwardSequence& from) const {
    fill_tables(layer);
    fill_weights(layer, buffers);
    copy(s.gx, from.gx);
    begin(layer, from, s, buffers);
  }
  void run(const Layer& layer, const Lane& lane) const { loop(layer, s, buffers, table, lane); }
  void finish(const Layer& layer, const ForwardSequence& to) const {
    end(layer, s, buffers);
    copy(to.y, s.y);
    copy(to.hn, s.hn);
    if (facts_of(layer.shape().cell).has_cell) copy(to.cn, s.cn);
    if (s.save_gates) copy(to.gates, s.gates);
    if (s.save_cells) copy(to.cells, s.cells);
    // What lies beyond the rows' lengths is nobody's.
    layer.clear_padding(to.y, 1);
    if (s.save_gates) layer.clear_padding(to.gates, layer.shape().D);
    if (s.save_cells) layer.clear_padding(to.cells, layer.shape().D);
  }
};

struct PreparedBackward : Prepared {
  BackwardSequence s;
  BackwardBuffers buffers;

  PreparedBackward(const Layer& layer, const BackwardSequence& like) : s(like) {
    make_tables(layer);
    s.y = own(like.y);
    s.gates = own(like.gates);
    s.cells = own(like.cells);
    s.h0 = own(like.h0);
    s.c0 = own(like.c0);
    s.grad_y = own(like.grad_y);
    s.grad_cells = own(like.grad_cells);
    // A thread reads of the gates what it overwrites with their gradients, where those are as many.
    s.dgates = layer.saved == layer.recurrent_gates ? s.gates : own(like.dgates);
    s.dh_y = own(like.dh_y);
    s.m = own(like.m);
    // Of these the loop asks whether they are wanted.
    s.grad_hn.reset();
    s.grad_cn.reset();
    s.dc0.reset();
    if (s.dh0) s.dh0 = s.h0;
    buffers = make_buffers(layer, s, /*own_weights=*/true);
    counted(buffers.w_hh);
  }
  void fill(const Layer& layer, const BackwardSequence& from) const {
    const auto fill_one = [](const std::optional<Tensor>& to, const std::optional<Tensor>& data) {
      if (to) copy(*to, *data);
    };
    fill_tables(layer);
    fill_weights(layer, buffers);
    copy(s.y, from.y);
    if (from.gates.numel()) copy(s.gates, from.gates);
    if (from.cells.numel()) copy(s.cells, from.cells);
    copy(s.h0, from.h0);
    fill_one(s.c0, from.c0);
    fill_one(s.grad_y, from.grad_y);
    fill_one(s.grad_cells, from.grad_cells);
    // Beyond a row's length nobody writes; a step's product reads there, and those of the weights' gradients.
    layer.clear_padding(s.dgates, layer.shape().D);
    if (s.dh_y) layer.clear_padding(*s.dh_y, layer.shape().D);
    if (s.m) layer.clear_padding(*s.m, layer.shape().D);
    begin(layer, from, buffers);
  }
  void run(const Layer& layer, const Lane& lane) const { loop(layer, s, buffers, table, lane); }
  void finish(const Layer& layer, const BackwardSequence& to) const {
    copy(to.dgates, s.dgates);
    if (s.dh_y) copy(*to.dh_y, *s.dh_y);
    if (s.m) copy(*to.m, *s.m);
    end(layer, to, buffers);
  }
};

// A device's graphs, those used last in front, and what its captures need.
class Graphs {
 public:
  std::unique_ptr<Prepared> take(const Kind& kind) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const auto& one) { return one->kind == kind; });
    if (found == kept_.end()) return nullptr;
    std::unique_ptr<Prepared> out = std::move(*found);
    kept_.erase(found);
    bytes_ -= out->bytes;
    return out;
  }
  void keep(std::unique_ptr<Prepared> one) {
    std::list<std::unique_ptr<Prepared>> dropped;  // whose destructors run without the lock
    const std::lock_guard lock(mutex_);
    bytes_ += one->bytes;
    one->used = ++now_;
    kept_.push_front(std::move(one));
    while (static_cast<int>(kept_.size()) > kMostGraphs || bytes_ > kMostKept) {
      bytes_ -= kept_.back()->bytes;
      dropped.splice(dropped.end(), kept_, std::prev(kept_.end()));
    }
  }
  int64_t release() {
    std::list<std::unique_ptr<Prepared>> dropped;
    const std::lock_guard lock(mutex_);
    dropped.swap(kept_);
    seen_.clear();
    return std::exchange(bytes_, 0);
  }
  // Whether a graph of the kind, of so many bytes, is worth its making: a call of it came before, of the last few
  // kinds that had none; and where one has to go for it, that one has not been of use since then. Else a program with
  // more kinds in turns than are kept would make each of them anew every time.
  bool wanted(const Kind& kind, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(seen_.begin(), seen_.end(), [&](const Seen& one) { return one.kind == kind; });
    if (found == seen_.end()) {
      seen_.push_front({kind, ++now_});
      if (seen_.size() > kMostSeen) seen_.pop_back();
      return false;
    }
    const uint64_t before = std::exchange(found->when, ++now_);
    const bool full = static_cast<int>(kept_.size()) >= kMostGraphs || bytes_ + bytes > kMostKept;
    return !full || kept_.empty() || kept_.back()->used < before;
  }

  std::mutex capturing;  // of the two below
  OwnBlas blas;
  void* stream = nullptr;

 private:
  std::mutex mutex_;
  std::list<std::unique_ptr<Prepared>> kept_;
  struct Seen {
    Kind kind;
    uint64_t when;
  };
  std::deque<Seen> seen_;
  uint64_t now_ = 0;  // goes on with every call
  int64_t bytes_ = 0;
};

constexpr int kMostDevices = 64;
// Never destroyed: at the end of a process there may be no driver left to give anything back to.
std::array<Graphs, kMostDevices>& all_graphs() {
  static auto& graphs = *new std::array<Graphs, kMostDevices>;
  return graphs;
}
Graphs& graphs_of(int device) {
  check(device < kMostDevices, "device: expected an index below ", kMostDevices, ", got ", device);
  return all_graphs()[device < 0 ? 0 : device];  // a tensor of the emulator's has no index
}

// The loop, once a step at a time, so that whatever loads or sets itself up at its first launch has done so, and then
// into the graph.
template <class Of, class Sequence>
int capture(Graphs& here, const Layer& layer, const Sequence& from, Of& one) {
  const std::lock_guard lock(here.capturing);
  const auto run_on = [&](void* stream) {
    here.blas.set(stream, one.workspace->data_ptr(), kWorkspaceBytes, layer.tf32);
    one.run(layer, {stream, &here.blas});
  };
  {
    const OutsideCapture outside;
    one.fill(layer, from);
    run_on(layer.stream);
  }
  return one.graph.capture(here.stream, [&](void* stream) {
    run_on(stream);
    return int{cudaSuccess};
  });
}

// With the memory of a graph to come, all of which is allocated here. On a thread of its own, where nothing of the
// caller's is in force: not its memory pool (torch.cuda.use_mem_pool, the warm-up of torch.compile's own CUDA
// graphs), which gives memory to others that is still in use here; nor its inference mode, whose tensors later calls
// outside could not fill. Null where the device has no room.
template <class Of, class Sequence>
std::unique_ptr<Of> make(const Layer& layer, const Sequence& s, bool may_throw) {
  try {
    return std::async(std::launch::async,
                      [&] {
                        const StreamGuard stream(layer.stream, layer.device);  // and the device
                        const OutsideCapture outside;
                        return std::make_unique<Of>(layer, s);
                      })
        .get();
  } catch (const std::exception&) {
    if (may_throw) throw;
    return nullptr;
  }
}

template <class Of, class Sequence>
bool run(const Layer& layer, const CudaPlan& plan, const Sequence& s, Pass pass, Kind kind) {
  const bool by_name = plan.asked != Tier::kAuto;
  Graphs& here = graphs_of(layer.device);
  std::unique_ptr<Prepared> kept = here.take(kind);
  int error = cudaSuccess;
  std::string thrown;  // by what is not the runtime: cuBLAS, torch
  try {
    if (!kept) {
      if (!by_name && !here.wanted(kind, plan.graph_bytes)) return false;
      auto made = make<Of>(layer, s, by_name);
      if (!made) {  // a step at a time needs memory too
        here.release();
        return false;
      }
      made->kind = std::move(kind);
      error = capture(here, layer, s, *made);
      kept = std::move(made);
    }
    if (error == cudaSuccess) {
      const Of& one = static_cast<const Of&>(*kept);
      one.fill(layer, s);
      error = one.graph.launch(layer.stream);
      if (error == cudaSuccess) {
        one.finish(layer, s);
        here.keep(std::move(kept));
        count(plan, pass);
        return true;
      }
    }
  } catch (const std::exception& raised) {
    if (by_name) throw;
    thrown = raised.what();
  }
  if (by_name) check_cuda(error);
  distrust(layer.device, plan.tier,
           error == cudaSuccess ? thrown : cudaGetErrorString(static_cast<cudaError_t>(error)));
  return false;
}

// What has to be before anything else.
bool possible(const Layer& layer, const CudaPlan& plan) {
  if (layer.shape().T == 0 || is_capturing(layer.stream)) return false;
  const bool found = blas_available();
  check(found || plan.asked == Tier::kAuto, "tier '", tier_name(plan.tier),
        "' cannot run this layer: torch has its cuBLAS inside itself here, where no graph finds it");
  return found;
}

}  // namespace

bool run_graph(const Layer& layer, const CudaPlan& plan, const ForwardSequence& s) {
  if (!possible(layer, plan)) return false;
  const Kind kind = kind_of(layer, Pass::kForward, {s.save_gates, s.save_cells});
  return run<PreparedForward>(layer, plan, s, Pass::kForward, kind);
}

bool run_graph(const Layer& layer, const CudaPlan& plan, const BackwardSequence& s) {
  if (!possible(layer, plan)) return false;
  const Kind kind = kind_of(layer, Pass::kBackward,
                            {s.grad_y.has_value(), s.grad_cells.has_value(), s.dh0.has_value(), s.m.has_value()});
  return run<PreparedBackward>(layer, plan, s, Pass::kBackward, kind);
}

int64_t release_graphs() {
  int64_t bytes = 0;
  for (Graphs& graphs : all_graphs()) bytes += graphs.release();
  return bytes;
}

}  // namespace fastrnn::cuda
