"""Training in half types: a backward pass that multiplies in bfloat16 is as near to the truth as torch's own,
and right where its pairs of units and of rows have rests."""

from __future__ import annotations

import layer_cases
import pytest
import torch
from layer_cases import CELLS, Case
from torch import Tensor

import fastrnn

BF16, F16 = torch.bfloat16, torch.float16


def gradients(layer: torch.nn.Module, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y, _ = layer(x)
    y.backward(cotangent.to(y.dtype))
    found = {"y": y.detach(), "grad x": x.grad, **{f"grad {n}": p.grad for n, p in layer.named_parameters()}}
    return {name: t.double() for name, t in found.items()}


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_no_less_accurate_than_torch(name, dtype):
    """The distance to float64 on the same numbers, by the root of its mean square over three layers of the
    sizes that the bfloat16 dot serves: of each result at most a tenth above that of torch.nn in the same type
    (in which chance has its part), and of all together at most that."""
    ours, theirs = {}, {}
    for T, B, I, H in ((60, 16, 64, 96), (50, 7, 33, 65), (12, 32, 100, 130)):  # noqa: E741
        for seed in range(2):
            torch.manual_seed(seed)
            torchs = getattr(torch.nn, name)(I, H, dtype=dtype)
            layer = getattr(fastrnn, name)(I, H, dtype=dtype)
            layer.load_state_dict(torchs.state_dict())
            exact = getattr(torch.nn, name)(I, H, dtype=torch.float64)
            exact.load_state_dict({k: v.double() for k, v in torchs.state_dict().items()})
            x, cotangent = torch.randn(T, B, I).to(dtype), torch.randn(T, B, H).to(dtype)
            want = gradients(exact, x.double(), cotangent)
            for errors, module in ((ours, layer), (theirs, torchs)):
                for what, got in gradients(module, x, cotangent).items():
                    relative = ((got - want[what]).square().mean() / want[what].square().mean()).item()
                    errors[what] = errors.get(what, 0.0) + relative
    ratios = {what: (ours[what] / theirs[what]) ** 0.5 for what in ours}
    assert max(ratios.values()) <= 1.1, ratios
    assert torch.tensor(list(ratios.values())).log().mean().exp() <= 1, ratios


def layers() -> list[Case]:
    """Rests of everything that is cut: units and features of pairs, vectors and panels; rows of pairs, of a
    pass of the weights' gradients (1024) and of a chunk; one row in all; no rows of some."""
    found = []
    for cell in CELLS:
        relu = cell == "rnn_relu"  # see layer_cases.problem: its sums must stay small
        for dtype in (BF16, F16):
            found += [
                Case(cell, 3, 5, 5 if relu else 31, 7 if relu else 33, dtype=dtype),
                Case(cell, 3, 5, 4 if relu else 64, 6 if relu else 47, dtype=dtype, save="recompute"),
                Case(cell, 5, 17, 1, 7 if relu else 97, dtype=dtype, D=2),
                Case(cell, 11, 1, 3 if relu else 130, 7 if relu else 9, dtype=dtype, bias=False),
            ]
            if not relu:
                found += [Case(cell, 150, 7, 3, 9, dtype=dtype), Case(cell, 1, 1033, 17, 8, dtype=dtype)]
    for dtype in (BF16, F16):
        found += [
            Case("lstm", 4, 9, 20, 65, P=33, dtype=dtype, save="recompute"),
            Case("lstm", 4, 9, 20, 65, P=1, D=2, dtype=dtype),
            Case("lstm", 9, 6, 18, 35, P=18, dtype=dtype, lengths=(9, 0, 4, 1), reset="some"),
        ]
    return found


@pytest.mark.parametrize("case", layers(), ids=str)
def test_rests(isa, case):
    """Outputs and every gradient against the reference in float64, on every instruction set."""
    layer_cases.check(torch.ops.fastrnn, case)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_threads_share_pairs_of_rows(isa, threads, cell, dtype):
    """More threads give the same numbers but for the order of sums: whoever pairs rows of gradients does so
    when nobody needs their pairs of units any more."""
    case = Case(cell, 40, 31, 33, 50, dtype=dtype, D=2)
    p = layer_cases.problem(case)
    for n in (1, 2, 3, 4):
        threads(n)
        got = layer_cases.fused(torch.ops.fastrnn, case, p)
        if n == 1:
            alone = got
            continue
        for name, one, more in zip(layer_cases.names(case), alone, got, strict=True):
            scale = one.abs().max().double().clamp(min=1e-3)
            apart = (one.double() - more.double()).abs().max() / scale
            assert apart.item() <= torch.finfo(dtype).eps, (name, n)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_odd_row_or_unit_spreads_nothing(isa, cell, dtype, value):
    """A NaN or an infinity in the last of an odd number of units, rows or features, beside which a pair holds
    zero: no other row's gradient sees it."""
    case = Case(cell, 3, 5, 17, 19, dtype=dtype, save="gates")
    for what in ("x", "grad y"):
        p = layer_cases.problem(case)
        (p.x if what == "x" else p.cotangents[0])[-1, -1, -1] = value
        saved = layer_cases.forward(torch.ops.fastrnn, case, p)
        grad_x, grad_h0, _, _ = layer_cases.backward(torch.ops.fastrnn, case, p, saved)
        for t in (saved[0][:, :-1], grad_x[:, :-1], grad_h0[:, :-1]):
            assert t.isfinite().all(), what
        if what == "grad y":
            assert not grad_x[-1, -1].isfinite().all()
