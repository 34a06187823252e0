// The persistent kernels as ops of their own, without the layer around them: gx in, gates' gradient out. For
// tests that choose tier, precision and device, which the layer's ops leave to the plan.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cuda/persistent/params.h"
#include "cuda/torch/device_properties.h"
#include "cuda/torch/runtime.h"

namespace {

using fastrnn::CellKind;
using fastrnn::Dtype;
using fastrnn::Tier;
using fastrnn::cuda::empty;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

fastrnn::cuda::CudaDevice device_with(int64_t sms) {
  fastrnn::cuda::CudaDevice device;
  device.compute_capability = 90;
  device.sms = static_cast<int>(sms);
  device.shared_bytes_per_block_optin = 227 << 10;
  device.cooperative_launch = true;
  device.max_cluster = fastrnn::cuda::max_cluster_of(90);
  return device;
}

CellKind kind_of(const std::string& cell) {
  return cell == "lstm"       ? CellKind::kLstm
         : cell == "gru"      ? CellKind::kGru
         : cell == "rnn_tanh" ? CellKind::kRnnTanh
                              : CellKind::kRnnRelu;
}

// Of the padded or packed layer that T, B and the tables on the "device" (empty: padded) describe.
fastrnn::LayerShape shape_of(const Tensor& h0, int64_t T, const Tensor& offsets, const std::string& cell) {
  fastrnn::LayerShape shape;
  shape.cell = kind_of(cell);
  const ScalarType type = h0.scalar_type();
  shape.dtype = type == ScalarType::Float  ? Dtype::kFloat
                : type == ScalarType::Half ? Dtype::kHalf
                                           : Dtype::kBFloat16;
  shape.T = T;
  shape.D = static_cast<int>(h0.size(0));
  shape.B = h0.size(1);
  shape.H = h0.size(2);
  if (offsets.numel()) shape.row_offsets = static_cast<const int64_t*>(offsets.data_ptr());
  return shape;
}

void* data(const Tensor& x) { return x.numel() ? x.data_ptr() : nullptr; }

// What every call has in common; the workspace holds rubbish, as torch's allocator gives it.
template <class Params>
Tensor prepare(Params& p, const fastrnn::LayerShape& shape, int64_t precision, const Tensor& offsets,
               const Tensor& lengths, const Tensor& resets, const std::vector<Tensor>& w_hh,
               const fastrnn::cuda::PersistentGeometry& g) {
  STD_TORCH_CHECK(g.fits, "does not fit: ", g.reason);
  p.shape = shape;
  p.precision = static_cast<fastrnn::cuda::Precision>(precision);
  p.row_offsets = static_cast<const int64_t*>(data(offsets));
  p.lengths = static_cast<const int64_t*>(data(lengths));
  p.resets = static_cast<const uint8_t*>(data(resets));
  for (int d = 0; d < shape.D; ++d) {
    p.w_hh[d] = w_hh[d].data_ptr();
    p.w_hh_stride[d] = w_hh[d].stride(0);
  }
  const Tensor workspace = empty({g.workspace_bytes / 4}, ScalarType::Float, 0);
  p.workspace = data(workspace);
  p.workspace_bytes = g.workspace_bytes;
  return workspace;
}

// The workspace's first word, 0 where there is none.
int64_t error_of(const Tensor& workspace) {
  return workspace.numel() ? *static_cast<uint32_t*>(workspace.data_ptr()) : 0;
}

// gx (D,N,G*H), rows of any stride, no bias; w_hh (G*H,H) a direction; biases: b_ih and b_hh (G*H) of each direction,
// or none; row_offsets, lengths and resets or empty. With w_ih (G*H,I) a direction and x (N,I) the kernel fills gx.
// in_place: the gates are saved where gx is. Returns y, hn, cn, gates, cells, the
// workspace's error word.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, int64_t> persistent_forward(
    const Tensor& gx, const std::vector<Tensor>& w_hh, const std::vector<Tensor>& biases, const Tensor& x,
    const std::vector<Tensor>& w_ih, const Tensor& h0, const Tensor& c0, const Tensor& offsets, const Tensor& lengths,
    const Tensor& resets, int64_t T, const std::string& cell, int64_t precision, int64_t tier, int64_t cluster,
    bool save, bool in_place, int64_t sms) {
  using namespace fastrnn::cuda;
  const fastrnn::LayerShape shape = shape_of(h0, T, offsets, cell);
  const bool lstm = shape.cell == CellKind::kLstm;
  const int64_t N = shape.rows(), H = shape.H, B = shape.B, D = shape.D, S = fastrnn::saved_of(shape.cell);
  const ScalarType type = h0.scalar_type();
  const PersistentGeometry g =
      geometry(shape.cell, static_cast<Precision>(precision), static_cast<fastrnn::Tier>(tier), H, B, shape.D,
               Pass::kForward, device_with(sms), static_cast<int>(cluster));
  PersistentForward p;
  const Tensor workspace = prepare(p, shape, precision, offsets, lengths, resets, w_hh, g);
  const Tensor y = empty({N, D * H}, type, 0), hn = empty({D, B, H}, type, 0);
  const Tensor cn = empty(lstm ? std::vector<int64_t>{D, B, H} : std::vector<int64_t>{0}, type, 0);
  const Tensor gates = in_place ? gx : empty({save ? D : 0, N, S * H}, type, 0);
  const Tensor cells = empty({save && lstm ? D : 0, N, H}, ScalarType::Float, 0);
  p.gx = gx.data_ptr();
  p.gx_stride = gx.stride(1);
  STD_TORCH_CHECK(D == 1 || gx.stride(0) == N * gx.stride(1), "gx: expected directions N rows apart");
  p.x = data(x);
  p.shape.I = x.numel() ? x.size(1) : 0;
  for (int64_t d = 0; d < D; ++d) {
    if (!biases.empty()) {
      p.b_ih[d] = biases[2 * d].data_ptr();
      p.b_hh[d] = biases[2 * d + 1].data_ptr();
    }
    if (!w_ih.empty()) {
      p.w_ih[d] = w_ih[d].data_ptr();
      p.w_ih_stride[d] = w_ih[d].stride(0);
    }
  }
  p.h0 = h0.data_ptr();
  p.c0 = data(c0);
  p.y = y.data_ptr();
  p.hn = hn.data_ptr();
  p.cn = data(cn);
  p.gates = data(gates);
  p.cells = static_cast<float*>(data(cells));
  emu::opt.sms = static_cast<int>(sms);
  check_cuda(persistent_forward(p, g, nullptr));
  return {y, hn, cn, gates, cells, error_of(workspace)};
}

// in_place: dgates are written where the gates are. Returns dgates (D,N,Gr*H), dh0, dc0, the error word. Absent
// gradients and dh0, dc0 not needed are empty.
std::tuple<Tensor, Tensor, Tensor, int64_t> persistent_backward(
    const std::vector<Tensor>& w_hh, const Tensor& gates, const Tensor& cells, const Tensor& y, const Tensor& h0,
    const Tensor& c0, const Tensor& grad_y, const Tensor& grad_hn, const Tensor& grad_cn, const Tensor& grad_cells,
    const Tensor& offsets, const Tensor& lengths, const Tensor& resets, int64_t T, const std::string& cell,
    int64_t precision, int64_t tier, int64_t cluster, bool need_state, bool in_place, int64_t sms) {
  using namespace fastrnn::cuda;
  const fastrnn::LayerShape shape = shape_of(h0, T, offsets, cell);
  const bool lstm = shape.cell == CellKind::kLstm;
  const int64_t N = shape.rows(), H = shape.H, B = shape.B, D = shape.D;
  const int64_t Gr = fastrnn::gates_of(shape.cell) + (shape.cell == CellKind::kGru);
  const ScalarType type = h0.scalar_type();
  const PersistentGeometry g =
      geometry(shape.cell, static_cast<Precision>(precision), static_cast<fastrnn::Tier>(tier), H, B, shape.D,
               Pass::kBackward, device_with(sms), static_cast<int>(cluster));
  PersistentBackward p;
  const Tensor workspace = prepare(p, shape, precision, offsets, lengths, resets, w_hh, g);
  const Tensor dgates = in_place ? gates : empty({D, N, Gr * H}, type, 0);
  const Tensor dh0 = empty({need_state ? D : 0, B, H}, type, 0);
  const Tensor dc0 = empty({need_state && lstm ? D : 0, B, H}, type, 0);
  p.gates = data(gates);
  p.cells = static_cast<const float*>(data(cells));
  p.y = y.data_ptr();
  p.h0 = h0.data_ptr();
  p.c0 = data(c0);
  p.grad_y = data(grad_y);
  p.grad_y_stride = grad_y.numel() ? grad_y.stride(0) : 0;
  p.grad_hn = data(grad_hn);
  p.grad_cn = data(grad_cn);
  p.grad_cells = static_cast<const float*>(data(grad_cells));
  p.dgates = dgates.data_ptr();
  p.dh0 = data(dh0);
  p.dc0 = data(dc0);
  emu::opt.sms = static_cast<int>(sms);
  check_cuda(persistent_backward(p, g, nullptr));
  return {dgates, dh0, dc0, error_of(workspace)};
}

// {fits, CTAs a replica, replicas, CTAs, row tiles, threads, shared bytes, workspace bytes, parts of K, peers}, and
// the reason.
std::tuple<std::vector<int64_t>, std::string> persistent_geometry(const std::string& cell, int64_t precision,
                                                                  int64_t tier, int64_t cluster, int64_t H, int64_t B,
                                                                  int64_t D, bool backward, int64_t sms,
                                                                  int64_t shared_bytes, int64_t compute_capability,
                                                                  bool cooperative) {
  using namespace fastrnn::cuda;
  CudaDevice device = device_with(sms);
  device.shared_bytes_per_block_optin = shared_bytes;
  device.compute_capability = static_cast<int>(compute_capability);
  device.cooperative_launch = cooperative;
  device.max_cluster = max_cluster_of(device.compute_capability);
  const PersistentGeometry g =
      geometry(kind_of(cell), static_cast<Precision>(precision), static_cast<fastrnn::Tier>(tier), H, B,
               static_cast<int>(D), backward ? Pass::kBackward : Pass::kForward, device, static_cast<int>(cluster));
  return {{g.fits, g.ctas_per_replica, g.replicas, g.ctas, g.n_tiles, g.threads, g.shared_bytes, g.workspace_bytes,
           g.k_split, g.peers},
          g.reason};
}

// Whether the last launch was of a kernel for whole tiles.
bool persistent_whole_tiles() { return emu::opt.whole_tiles; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTRNN_NAMESPACE, m) {
  m.def(
      "persistent_forward(Tensor gx, Tensor[] w_hh, Tensor[] biases, Tensor x, Tensor[] w_ih, Tensor h0, Tensor c0, "
      "Tensor row_offsets, "
      "Tensor lengths, Tensor resets, int T, str cell, int precision, int tier, int cluster, bool save, bool "
      "in_place, int sms) "
      "-> (Tensor "
      "y, Tensor hn, "
      "Tensor cn, Tensor gates, Tensor cells, int error)");
  m.def(
      "persistent_backward(Tensor[] w_hh, Tensor gates, Tensor cells, Tensor y, Tensor h0, Tensor c0, Tensor grad_y, "
      "Tensor grad_hn, Tensor grad_cn, Tensor grad_cells, Tensor row_offsets, Tensor lengths, Tensor resets, int T, "
      "str cell, int precision, int tier, int cluster, bool need_state, bool in_place, int sms) -> (Tensor dgates, "
      "Tensor dh0, "
      "Tensor dc0, int error)");
  m.def("persistent_whole_tiles() -> bool");
  m.def(
      "persistent_geometry(str cell, int precision, int tier, int cluster, int H, int B, int D, bool backward, int "
      "sms, "
      "int shared_bytes, int compute_capability, bool cooperative) -> (int[] numbers, str reason)");
}
STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, CPU, m) {
  m.impl("persistent_forward", TORCH_BOX(&persistent_forward));
  m.impl("persistent_backward", TORCH_BOX(&persistent_backward));
}
STABLE_TORCH_LIBRARY_IMPL(FASTRNN_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("persistent_whole_tiles", TORCH_BOX(&persistent_whole_tiles));
  m.impl("persistent_geometry", TORCH_BOX(&persistent_geometry));
}
