// The time loops of the persistent tiers, seen from outside: tensors into the structs of params.h, one
// launch a pass.
#include "cuda/persistent/loop.h"

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

bool launched(int error) {
  if (error == cudaErrorCooperativeLaunchTooLarge) return false;
  check_cuda(error);
  return true;
}

bool launch(const Layer& layer, const CudaPlan& plan, const ForwardSequence& s) {
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
  return launched(persistent_forward(p, plan.geometry, layer.stream));
}

bool launch(const Layer& layer, const CudaPlan& plan, const BackwardSequence& s) {
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
  return launched(persistent_backward(p, plan.geometry, layer.stream));
}

// A cluster that the device has no room for makes way for a smaller one, then for the next tier.
template <class Sequence>
bool run(const Layer& layer, CudaPlan plan, Pass pass, const Sequence& s) {
  CudaDevice device = device_properties(layer.device);
  while (plan.tier != Tier::kStepwise) {
    if (launch(layer, plan, s)) return true;
    if (plan.tier != Tier::kCluster) return false;
    device.max_cluster = plan.geometry.ctas_per_replica / 2;
    const bool projects = plan.projects;  // or gx is there already
    plan = plan_cuda(layer.shape(), layer.tf32, pass, device);
    plan.projects = projects;
  }
  return false;
}

}  // namespace

bool run_persistent(const Layer& layer, const CudaPlan& plan, const ForwardSequence& s) {
  return run(layer, plan, Pass::kForward, s);
}
bool run_persistent(const Layer& layer, const CudaPlan& plan, const BackwardSequence& s) {
  return run(layer, plan, Pass::kBackward, s);
}

}  // namespace fastrnn::cuda
