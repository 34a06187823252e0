// The time loops of the persistent tiers, seen from outside: tensors into the structs of params.h, one
// launch a pass.
#include "cuda/persistent/loop.h"

#include <algorithm>

#include "cuda/device/side_stream.h"
#include "cuda/persistent/params.h"

namespace fastrnn::cuda {
namespace {

// What both passes set alike. `keep` holds the tensors that the pointers belong to until the launch: memory that
// is freed after it goes to later work on the same stream.
template <class Params>
void set_common(Params& p, const Layer& layer, const CudaPlan& plan, std::vector<Tensor>& keep) {
  p.shape = layer.shape();
  p.precision = plan.precision;
  for (int d = 0; d < layer.shape().D; ++d) {
    keep.push_back(with_contiguous_rows(layer.w_hh(d)));
    p.w_hh[d] = keep.back().data_ptr();
    p.w_hh_stride[d] = keep.back().stride(0);
  }
  const RowTable& table = layer.table();
  p.row_offsets = table.row_offsets;
  p.lengths = table.lengths;
  p.resets = table.resets;
  if (plan.geometry.workspace_bytes) {
    const Tensor workspace = empty({plan.geometry.workspace_bytes}, ScalarType::Byte, layer.device);
    p.workspace = workspace.data_ptr();
    p.workspace_bytes = plan.geometry.workspace_bytes;
    keep.push_back(workspace);
  }
}

// Steps [first, first + count) of a forward pass of one direction whose rows are all as long, as a pass of its own:
// its states, (1,B,H) each and c an LSTM's, are those of the steps before and become those of the steps behind.
struct Piece {
  int64_t first = 0, count = 0;
  void *h_in = nullptr, *c_in = nullptr, *h_out = nullptr, *c_out = nullptr;
};

void cut(PersistentForward& p, const Piece& piece) {
  const int64_t element = static_cast<int64_t>(size_of(p.shape.dtype)), H = p.shape.H;
  const int64_t row = piece.first * p.shape.B;
  const auto behind = [](auto* from, int64_t bytes) {
    using Of = decltype(from);
    return from ? reinterpret_cast<Of>(reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(bytes)) : from;
  };
  p.shape.T = piece.count;
  p.gx = behind(p.gx, row * p.gx_stride * element);
  p.y = behind(p.y, row * H * element);
  p.gates = behind(p.gates, row * saved_of(p.shape.cell) * H * element);
  p.cells = behind(p.cells, row * H * int64_t{sizeof(float)});
  p.resets = behind(p.resets, row);
  p.h0 = piece.h_in;
  p.c0 = piece.c_in;
  p.hn = piece.h_out;
  p.cn = piece.c_out;
}

int launch(const Layer& layer, const CudaPlan& plan, const ForwardSequence& s, const Piece& piece = {}) {
  PersistentForward p;
  std::vector<Tensor> keep;
  set_common(p, layer, plan, keep);
  const Tensor h0 = as_contiguous(s.h0);
  const std::optional<Tensor> c0 = s.c0 ? std::optional(as_contiguous(*s.c0)) : std::nullopt;
  p.gx = s.gx.data_ptr();
  p.gx_stride = s.gx.size(2);
  const auto kept = [&](const Tensor& t) {
    keep.push_back(t);
    return t.data_ptr();
  };
  for (int d = 0; d < layer.shape().D; ++d) {
    if (layer.shape().bias) {
      p.b_ih[d] = kept(as_contiguous(layer.b_ih(d)));
      p.b_hh[d] = kept(as_contiguous(layer.b_hh(d)));
    }
    if (plan.projects) {
      const Tensor w_ih = with_contiguous_rows(layer.w_ih(d));
      p.w_ih[d] = kept(w_ih);
      p.w_ih_stride[d] = w_ih.stride(0);
    }
  }
  if (plan.projects) p.x = layer.x().data_ptr();
  p.h0 = h0.data_ptr();
  p.c0 = data(c0);
  p.y = s.y.data_ptr();
  p.hn = s.hn.data_ptr();
  if (layer.is(CellKind::kLstm)) p.cn = s.cn.data_ptr();
  if (s.save_gates) p.gates = s.gates.data_ptr();
  if (s.save_cells) p.cells = static_cast<float*>(s.cells.data_ptr());
  if (piece.count) cut(p, piece);
  return persistent_forward(p, plan.geometry, layer.stream);
}

int launch(const Layer& layer, const CudaPlan& plan, const BackwardSequence& s) {
  PersistentBackward p;
  std::vector<Tensor> keep;
  set_common(p, layer, plan, keep);
  const auto contiguous = [](const std::optional<Tensor>& t) {
    return t ? std::optional(as_contiguous(*t)) : std::nullopt;
  };
  const std::optional<Tensor> grad_hn = contiguous(s.grad_hn), grad_cn = contiguous(s.grad_cn);
  p.gates = s.gates.data_ptr();
  p.cells = static_cast<const float*>(s.cells.data_ptr());
  p.y = s.y.data_ptr();
  p.h0 = s.h0.data_ptr();
  p.c0 = data(s.c0);
  p.grad_y = data(s.grad_y);
  p.grad_y_stride = layer.shape().D * layer.shape().H;
  p.grad_hn = data(grad_hn);
  p.grad_cn = data(grad_cn);
  p.grad_cells = static_cast<const float*>(data(s.grad_cells));
  p.dgates = s.dgates.data_ptr();
  p.dh0 = data(s.dh0);
  p.dc0 = data(s.dc0);
  return persistent_backward(p, plan.geometry, layer.stream);
}

// Clusters asked for in no certain size: the next smaller ones, where the device has no room for the plan's.
std::optional<CudaPlan> smaller_clusters(const Layer& layer, const CudaPlan& plan, Pass pass) {
  CudaDevice device = device_properties(layer.device);
  device.max_cluster = plan.geometry.ctas_per_replica / 2;
  CudaPlan smaller = plan_cuda(layer.shape(), layer.tf32, pass, device, Tier::kCluster);
  smaller.projects = plan.projects;  // or gx is there already
  return smaller.possible ? std::optional(smaller) : std::nullopt;
}

// What becomes of a pass by how its launch ended. A tier that was asked for by name runs, or is an error: whoever
// asked wants to know of that very tier. Where nobody did, no launch ends a call that the stepwise tier can answer.
// No room just now is the plain case of a device that is shared; everything else is a fault, which is told of and not
// tried again.
bool ran_by(int error, const Layer& layer, const CudaPlan& plan, Pass pass) {
  if (error == cudaSuccess) {
    count(plan, pass);
    return true;
  }
  const bool no_room = error == cudaErrorCooperativeLaunchTooLarge;
  if (plan.asked != Tier::kAuto) {
    check(!no_room, "tier '", tier_name(plan.asked), "' cannot run this layer's ", pass_name(pass),
          " pass: the device has no room for it at once just now");
    check_cuda(error);
  }
  if (!no_room) {
    cudaGetLastError();  // the runtime's memory of it
    distrust(layer.device, plan.tier, cudaGetErrorString(static_cast<cudaError_t>(error)));
  }
  return false;
}

template <class Sequence>
bool run(const Layer& layer, CudaPlan plan, Pass pass, const Sequence& s) {
  for (;;) {
    const int error = launch(layer, plan, s);
    if (error == cudaErrorCooperativeLaunchTooLarge && plan.asked == Tier::kCluster) {
      if (const auto smaller = smaller_clusters(layer, plan, pass)) {
        plan = *smaller;
        continue;
      }
    }
    return ran_by(error, layer, plan, pass);
  }
}

}  // namespace

bool run_persistent(const Layer& layer, const CudaPlan& plan, const ForwardSequence& s) {
  return run(layer, plan, Pass::kForward, s);
}
bool run_persistent(const Layer& layer, const CudaPlan& plan, const BackwardSequence& s) {
  return run(layer, plan, Pass::kBackward, s);
}

bool run_overlapped(const Layer& layer, const CudaPlan& plan, const ForwardSequence& s, const Project& project) {
  const LayerShape& shape = layer.shape();
  const bool has_cell = facts_of(shape.cell).has_cell;
  const int64_t steps = (shape.T + plan.chunks - 1) / plan.chunks;
  Tensor h = as_contiguous(s.h0);
  std::optional<Tensor> c = has_cell ? std::optional(as_contiguous(*s.c0)) : std::nullopt;
  SideStream side(layer.device, layer.stream);
  const auto rows_of_steps = [&](int64_t first) { return std::min(steps, shape.T - first) * shape.B; };
  project(0, rows_of_steps(0));
  int error = side.fork();
  for (int64_t first = 0; error == cudaSuccess && first < shape.T; first += steps) {
    const int64_t next = first + steps;
    const bool last = next >= shape.T;
    const Tensor h_out = last ? s.hn : layer.make({1, shape.B, shape.H});
    std::optional<Tensor> c_out;
    if (has_cell) c_out = last ? s.cn : layer.make({1, shape.B, shape.H});
    // The loop before the next product, which would else take its SMs.
    error = launch(layer, plan, s,
                   {first, std::min(steps, shape.T - first), h.data_ptr(), data(c), h_out.data_ptr(), data(c_out)});
    if (error != cudaSuccess || last) break;
    {
      const StreamGuard on_side(side.stream(), layer.device);
      project(next * shape.B, rows_of_steps(next));
    }
    error = side.join();
    h = h_out;
    c = c_out;
  }
  return ran_by(error, layer, plan, Pass::kForward);
}

}  // namespace fastrnn::cuda
