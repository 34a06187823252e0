"""sigmoid and tanh of every instruction set against float64, over the whole line of numbers.

Backward takes the derivatives from the results, 1 - y^2 and y (1 - y), and multiplies them by inputs and
states of any size. So results are compared in units of their last place, and where a function has converged
it has to be exactly -1, 0 or 1: 2e-7 of a derivative that is 0 is an error of 37 in a gradient beside an
input of 1e6.
"""

from __future__ import annotations

import pytest
import torch
from layer_cases import SAVES
from torch import Tensor

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

#: Beyond it tanh is 1 and sigmoid 1 in float32: what is missing is less than half of the last place.
TANH_CONVERGED, SIGMOID_CONVERGED = 9.02, 17.4

#: A prime, so that its multiples have mantissas of every kind; 2 million of the 2^32 numbers.
STRIDE = 2053


def every_kind_of_float() -> Tensor:
    """(N,) float32: zeros, subnormals, 1e-38 to 1e38, the infinities and NaN, in both signs."""
    magnitudes = torch.arange(0, 0x7F800000, STRIDE, dtype=torch.int64).to(torch.int32).view(F32)
    edges = torch.tensor([0.65, 9.02, 10, 17, 17.4, 87, 87.3, 88, 88.7, 89, 104, 1e-45, torch.inf, torch.nan])
    steps = torch.arange(-4, 5, dtype=torch.int32)
    near = (edges[:-2].view(torch.int32).unsqueeze(1) + steps).flatten().view(F32)
    x = torch.cat([magnitudes, edges, near])
    return torch.cat([x, -x])


def activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid and tanh of x as an LSTM saves them: gates of one unit, one step, one row a number."""
    state = torch.zeros(1, len(x), 1, dtype=x.dtype)
    weights = [torch.ones(4, 1, dtype=x.dtype), torch.zeros(4, 1, dtype=x.dtype)]
    gates = torch.ops.fastrnn.rnn_forward(
        x.view(1, -1, 1), state, state, weights, None, None, None, "lstm", False, SAVES["gates"]
    )[3].view(-1, 4)
    for i in (1, 3):
        assert torch.equal(gates[:, 0].nan_to_num(9), gates[:, i].nan_to_num(9))
    return gates[:, 0], gates[:, 2]


def scanned(x: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid and tanh of finite x in the SRU's kernels, which are compiled apart: c = f with u = 0 and
    c0 = 1; h = tanh(c), c = u with the forget gate closed and the reset gate open."""
    n, zero = len(x), torch.zeros(1, 1, len(x))
    biases, none = torch.zeros(2, n), torch.zeros(2, n)
    ones = torch.ones(1, n)

    def run(*u: Tensor) -> tuple[Tensor, Tensor]:
        scan = torch.ops.fastrnn.sru_forward
        u = torch.stack([t.expand(1, 1, n) for t in u], 2)
        return scan(u, zero, none, biases, ones, None, None, None, None, None, True, 1.0, False, False)[:2]

    far = torch.tensor(1e4)
    return run(zero, x, zero)[1].flatten(), run(x, -far, far)[0].flatten()


def in_last_places(got: Tensor, want: Tensor) -> Tensor:
    """got - want in units of float32's last place at want; below the normal numbers in the smallest of them,
    which torch's sigmoid rounds to zero as well."""
    exponent = torch.frexp(want).exponent.clamp(min=-125)
    return (got.double() - want) / torch.ldexp(torch.ones_like(want), exponent - 24)


def check_float32(x: Tensor, sigmoid: Tensor, tanh: Tensor, isa: str) -> None:
    assert sigmoid[x.isnan()].isnan().all()
    assert tanh[x.isnan()].isnan().all()
    keep = ~x.isnan()
    x, sigmoid, tanh = x[keep], sigmoid[keep], tanh[keep]
    wide = x.double()
    want = torch.sigmoid(wide)
    tiny = want < 2.0**-126  # subnormal or nothing: any of the two
    assert (sigmoid[tiny] < 2.0**-125).all()
    assert not sigmoid[x < -104].any()
    error = in_last_places(sigmoid, want).masked_fill(tiny, 0)
    # Without fused multiply-adds the sum 1 + exp(-x) is rounded once more.
    assert error.abs().max() <= (1.5 if isa == "baseline" else 1.0), wide[error.abs().argmax()]
    assert error[x.abs() < 10].mean().abs() < 0.03
    assert (sigmoid[x > SIGMOID_CONVERGED] == 1).all()

    want = torch.tanh(wide)
    error = in_last_places(tanh, want)
    assert error.abs().max() <= 1.15, wide[error.abs().argmax()]
    away_from_zero = error * x.sign()
    assert away_from_zero[x.abs() > 1e-30].mean().abs() < 0.01
    small = (x.abs() > 1e-30) & (x.abs() < 1e-2)  # a state that decays or grows at every step of a sequence
    assert (tanh.double() / want - 1)[small].mean().abs() < 1e-9
    assert torch.equal(tanh[x.abs() < 1e-4 * 0.7], x[x.abs() < 1e-4 * 0.7])
    converged = x.abs() > TANH_CONVERGED
    assert torch.equal(tanh[converged], x.sign()[converged])

    # As backward computes them, in float32.
    slope, want_slope = 1 - tanh * tanh, 1 / torch.cosh(wide) ** 2
    assert (slope - want_slope).abs().max() < 1.5e-7
    assert not slope[converged].any()
    slope, want_slope = sigmoid * (1 - sigmoid), torch.sigmoid(wide) * torch.sigmoid(-wide)
    assert (slope - want_slope).abs().max() < 1e-7
    assert not slope[x > SIGMOID_CONVERGED].any()
    assert not slope[x < -104].any()


def test_float32_of_the_layers(isa):
    """Protects every cell's values and derivatives: an ulp, no bias, and exactly +-1, 0 and 1 at the ends."""
    x = every_kind_of_float()
    check_float32(x, *activations(x), isa)


def test_float32_of_the_scan(isa):
    """The same of the SRU's kernels, where all lanes of a register hold numbers."""
    x = every_kind_of_float()
    x = x[x.isfinite()]
    check_float32(x, *scanned(x), isa)


def test_derivatives_of_the_layers(isa):
    """1 - y^2 as RNN's backward hands it on is the derivative, and exactly 0 where tanh has converged."""
    x = every_kind_of_float()
    x = x[x.isfinite()]
    state = torch.zeros(1, len(x), 1)
    weights, ones = [torch.ones(1, 1), torch.zeros(1, 1)], torch.ones(1, len(x), 1)
    ops, rest = torch.ops.fastrnn, (None, None, None, "rnn_tanh", False)
    inputs = (x.view(1, -1, 1), state, None, weights)
    y, _, _, gates, cells = ops.rnn_forward(*inputs, *rest, SAVES["gates"])
    given = (*inputs, *rest[:3], y, gates, cells, *rest[3:], 1)
    slope = ops.rnn_backward(ones, None, None, None, *given)[0].flatten()
    assert (slope - 1 / torch.cosh(x.double()) ** 2).abs().max() < 1.5e-7
    assert not slope[x.abs() > TANH_CONVERGED].any()


def test_float64(isa):
    """The same for float64, to a few of its last places."""
    magnitudes = torch.arange(0, 0x7FF0 << 48, 0x1FFFFFFFFFFB, dtype=torch.int64).view(F64)
    dense = torch.linspace(0, 50, 100_003, dtype=F64)
    x = torch.cat([magnitudes, dense, -magnitudes, -dense, torch.tensor([torch.inf, -torch.inf], dtype=F64)])
    sigmoid, tanh = activations(x)
    assert ((tanh - torch.tanh(x)).abs() <= 1e-15 * torch.tanh(x).abs()).all()
    assert ((sigmoid - torch.sigmoid(x)).abs() <= 1e-15 * torch.sigmoid(x) + 1e-307).all()
    assert torch.equal(tanh[x.abs() > 20], x.sign()[x.abs() > 20])
    assert (sigmoid[x > 40] == 1).all()
    assert not sigmoid[x < -709].any()
    assert all(t.isnan().all() for t in activations(torch.full((3,), torch.nan, dtype=F64)))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_half_types(isa, dtype):
    """Every one of the 65536 numbers: computed in float32 and rounded once."""
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    for got, function in zip(activations(x), (torch.sigmoid, torch.tanh), strict=True):
        assert got.dtype == dtype
        assert got[x.isnan()].isnan().all()
        known = ~x.isnan()
        want = function(x[known].double())
        exponent = torch.frexp(want).exponent.clamp(min=-125 if dtype == BF16 else -13)
        last_place = torch.ldexp(torch.ones_like(want), exponent - (8 if dtype == BF16 else 11))
        assert ((got[known].double() - want).abs() <= 0.501 * last_place + 2.0**-126).all()
        if function is torch.tanh:
            assert torch.equal(got[x.abs() > TANH_CONVERGED], x.sign()[x.abs() > TANH_CONVERGED])
        else:
            assert (got[x > SIGMOID_CONVERGED] == 1).all()
            assert not got[x < -104].any()
