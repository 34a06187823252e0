// The CPU's scan with a cell whose counts are not SRU's: two inputs and no gate, h_t = c_t = u_0 c_{t-1} + u_1.
// Exits with 0 where both passes give what plain loops do, in every lane of a register and beyond.
#define FASTRNN_VECTOR_BYTES 16
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/scan/backward.inl"
#include "cpu/scan/forward.inl"

namespace {

using namespace fastrnn;

template <class M>
struct LinearCell {
  using V = typename M::V;
  static constexpr int kInputs = 2, kGates = 0;
  static FASTRNN_HD void forward(const V* u, const V*, const V*, V, V, V c_prev, V& c, V& h) {
    h = c = u[0] * c_prev + u[1];
  }
  static FASTRNN_HD void backward(const V* u, const V*, const V*, V, V, V c_prev, V dh, V dc, V* du, V& dx,
                                  V& dc_prev) {
    du[1] = dh + dc;
    du[0] = du[1] * c_prev;
    dc_prev = du[1] * u[0];
    dx = V{};
  }
};

template <class Kernel, class Params>
void run(const Params& params, const ScanPlan& plan) {
  const size_t bytes = (Kernel(params, plan, nullptr).workspace_bytes() + 63) / 64 * 64;
  char* const scratch = static_cast<char*>(std::aligned_alloc(64, bytes));
  __builtin_memset(scratch, 0xff, bytes);  // NaN: nothing is read before it is written
  Kernel kernel(params, plan, scratch);
  Kernel::body(0, kernel.workers(), &kernel);
  std::free(scratch);
}

bool same(const char* name, const std::vector<double>& got, const std::vector<double>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!(std::abs(got[i] - wanted[i]) < 1e-12)) {
      std::printf("%s[%zu]: %g, not %g\n", name, i, got[i], wanted[i]);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  const int64_t L = 5, B = 3, O = 7, N = L * B;
  const auto value = [](int64_t i) { return static_cast<double>((i * 7919) % 101) / 101 - 0.5; };
  std::vector<double> u(N * 2 * O), c0(B * O), dh(N * O), dc(B * O), h(N * O), c(B * O), cells(N * O), du(N * 2 * O),
      dc0(B * O);
  std::vector<double> none(1);
  for (size_t i = 0; i < u.size(); ++i) u[i] = value(i);
  for (size_t i = 0; i < dh.size(); ++i) dh[i] = value(i + 13);
  for (size_t i = 0; i < c0.size(); ++i) c0[i] = value(i + 29), dc[i] = value(i + 31);

  ScanForwardParams f;
  f.in.shape.dtype = Dtype::kDouble;
  f.in.shape.T = L, f.in.shape.B = B, f.in.shape.O = O, f.in.shape.K = 2;
  f.in.u.data = u.data(), f.in.u.step_stride = B * 2 * O, f.in.u.row_stride = 2 * O, f.in.u.gate_stride = O;
  f.in.weight_c = f.in.bias = none.data();
  f.in.c0 = c0.data();
  f.h = h.data(), f.c = c.data(), f.cells = cells.data();
  const ScanPlan plan;
  run<ScanForward<double, Dtype::kDouble, LinearCell>>(f, plan);
  ScanBackwardParams b;
  b.in = f.in;
  b.cells = cells.data();
  b.grad_h.data = dh.data(), b.grad_h.step_stride = B * O, b.grad_h.row_stride = O;
  b.grad_c = dc.data(), b.grad_u = du.data(), b.grad_c0 = dc0.data();
  run<ScanBackward<double, Dtype::kDouble, LinearCell>>(b, plan);

  std::vector<double> h2(N * O), du2(N * 2 * O), last(B * O), first(B * O);
  for (int64_t j = 0; j < B * O; ++j) {
    const int64_t row = j / O, o = j % O;
    const auto at = [&](int64_t t, int k) { return ((t * B + row) * 2 + k) * O + o; };
    double state = c0[j], gradient = dc[j];
    for (int64_t t = 0; t < L; ++t) h2[t * B * O + j] = state = u[at(t, 0)] * state + u[at(t, 1)];
    last[j] = state;
    for (int64_t t = L; t-- > 0;) {
      gradient += dh[t * B * O + j];
      du2[at(t, 1)] = gradient;
      du2[at(t, 0)] = gradient * (t ? h2[(t - 1) * B * O + j] : c0[j]);
      gradient *= u[at(t, 0)];
    }
    first[j] = gradient;
  }
  return same("h", h, h2) && same("c", c, last) && same("du", du, du2) && same("dc0", dc0, first) ? 0 : 1;
}
