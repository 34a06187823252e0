// The persistent tiers' two entries: what they refuse, and the choice of the cell's instances.
#include <limits>

#include "cuda/persistent/launch.cuh"

namespace fastrnn::cuda {

template <>
int launch_forward<Lstm>(const PersistentForward&, const PersistentGeometry&, const Cut&, void*);
template <>
int launch_forward<Gru>(const PersistentForward&, const PersistentGeometry&, const Cut&, void*);
template <>
int launch_forward<Rnn>(const PersistentForward&, const PersistentGeometry&, const Cut&, void*);
template <>
int launch_backward<Lstm>(const PersistentBackward&, const PersistentGeometry&, const Cut&, void*);
template <>
int launch_backward<Gru>(const PersistentBackward&, const PersistentGeometry&, const Cut&, void*);
template <>
int launch_backward<Rnn>(const PersistentBackward&, const PersistentGeometry&, const Cut&, void*);

namespace {

template <class Params>
bool valid(const Params& p, const PersistentGeometry& g, Pass pass) {
  return g.fits && g.pass == pass && g.cell == p.shape.cell && g.precision == p.precision && g.H == p.shape.H &&
         g.B == p.shape.B && g.D == p.shape.D && p.shape.P == 0 && p.shape.T >= 1 &&
         p.shape.T <= std::numeric_limits<int>::max() && p.workspace_bytes >= g.workspace_bytes &&
         (p.workspace || g.workspace_bytes == 0);
}

// The cell's of the two launch functions.
template <class Launch>
int with_kind(CellKind cell, Launch launch) {
  switch (cell) {
    case CellKind::kLstm:
      return launch.template operator()<Lstm>();
    case CellKind::kGru:
      return launch.template operator()<Gru>();
    default:
      return launch.template operator()<Rnn>();
  }
}

}  // namespace

int persistent_forward(const PersistentForward& p, const PersistentGeometry& g, void* stream) {
  if (!valid(p, g, Pass::kForward)) return cudaErrorInvalidValue;
  Cut cut = cut_of(g, p.shape, p.workspace, p.wait_ticks);
  const size_t element = size_of(p.shape.dtype);
  const int64_t H = p.shape.H;
  cut.whole_pairs = pairs_are_whole({{p.gx, element, p.gx_stride},
                                     {p.h0, element, H},
                                     {p.c0, element, H},
                                     {p.y, element, H},
                                     {p.hn, element, H},
                                     {p.cn, element, H},
                                     {p.gates, element, H},
                                     {p.cells, sizeof(float), H}},
                                    H);
  cut.whole_tiles = tiles_are_whole(p, g, cut);
  cut.weights_at_once = elements_at_once(p.w_hh, p.w_hh_stride, p.shape.D, element, H);
  if (p.x) {
    if (p.shape.I < 1 || p.shape.I > kMaxProjected) return cudaErrorInvalidValue;
    cut.whole_x = pairs_are_whole({{p.x, element, p.shape.I}}, p.shape.I);
    cut.inputs_at_once = elements_at_once(p.w_ih, p.w_ih_stride, p.shape.D, element, p.shape.I);
  }
  return with_kind(p.shape.cell, [&]<class Kind>() { return launch_forward<Kind>(p, g, cut, stream); });
}

int persistent_backward(const PersistentBackward& p, const PersistentGeometry& g, void* stream) {
  if (!valid(p, g, Pass::kBackward)) return cudaErrorInvalidValue;
  Cut cut = cut_of(g, p.shape, p.workspace, p.wait_ticks);
  const size_t element = size_of(p.shape.dtype);
  const int64_t H = p.shape.H;
  cut.whole_pairs = pairs_are_whole({{p.gates, element, H},
                                     {p.cells, sizeof(float), H},
                                     {p.y, element, H},
                                     {p.h0, element, H},
                                     {p.c0, element, H},
                                     {p.grad_y, element, p.grad_y_stride},
                                     {p.grad_hn, element, H},
                                     {p.grad_cn, element, H},
                                     {p.grad_cells, sizeof(float), H},
                                     {p.dgates, element, H},
                                     {p.dh0, element, H},
                                     {p.dc0, element, H}},
                                    H);
  cut.whole_tiles = tiles_are_whole(p, g, cut);
  cut.weights_at_once = elements_at_once(p.w_hh, p.w_hh_stride, p.shape.D, element, H);
  return with_kind(p.shape.cell, [&]<class Kind>() { return launch_backward<Kind>(p, g, cut, stream); });
}

}  // namespace fastrnn::cuda
