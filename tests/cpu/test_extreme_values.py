"""Inputs and states from 1e-30 to 1e30: as near to float64 as torch's own float32 is, forward and backward.

A unit that has converged passes no gradient. What a kernel leaves of it there is multiplied by the input or
the state that made the unit converge, which nothing bounds: features that nobody normalised, a cell that
counts.
"""

from __future__ import annotations

from dataclasses import replace

import layer_cases
import pytest
import sru_cases
import torch
from layer_cases import CELLS, DTYPES, PACKED, Case, Problem
from tolerances import assert_close
from torch import Tensor

F32 = torch.float32
SCALES = (1e-30, 1e-20, 1e-10, 1e-4, 1e-2, 1e2, 1e3, 1e4, 6e4, 1e6, 1e10, 1e20, 1e30)


def off(got: Tensor, want: Tensor) -> float:
    """The largest error against the largest value; a tensor that is 0 in float32 has to be that."""
    largest = want.abs().max().item()
    return (got.double() - want).abs().max().item() / max(largest, 1e-36)


def assert_as_good(names: list[str], got: list[Tensor], theirs: list[Tensor], want: list[Tensor]) -> None:
    """No further from float64 than three times torch's float32, or than the rounding of a gate's sum of 100
    moves a gate that is nearly closed."""
    for name, g, t, w in zip(names, got, theirs, want, strict=True):
        if t.isfinite().all():
            assert off(g, w) <= 3 * off(t, w) + 1e-5, f"{name}: {off(g, w):.2e}, torch {off(t, w):.2e}"


def scaled(p: Problem, what: str, scale: float) -> Problem:
    """One of the inputs in another size: x's only feature, one unit of h0, all of c0.

    A gate's sum then has one large term at most, and no weight is near 0: several that cancel would leave
    what their roundings decide, in torch as here.
    """
    t = getattr(p, what) + 0.3 * getattr(p, what).sign()
    large = torch.arange(t.size(-1)) == 0 if what == "h0" else torch.tensor(True)
    weights = [w + 0.07 * w.sign() if w.dim() == 2 else w for w in p.weights]
    return replace(p, weights=weights, **{what: torch.where(large, t * scale, t)})


VARIANTS = {
    "plain": {},
    "recompute": {"save": "recompute"},
    "bidirectional": {"D": 2, "bias": False},
    "packed": {"sizes": PACKED},
    "lengths": {"lengths": layer_cases.LENGTHS, "save": "recompute"},
    "one row": {"T": 1, "B": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("what", ["x", "h0", "c0"])
def test_layers(isa, cell, what, variant):
    """Protects every gradient beside a large number: one input feature, the state, the cell."""
    if what == "c0" and cell != "lstm":
        return
    case = Case(cell, **{"T": 4, "B": 5, "IN": 1, "H": 18, "dtype": F32, **VARIANTS[variant]})
    for scale in SCALES:
        p = scaled(layer_cases.problem(case), what, scale)
        got = layer_cases.fused(torch.ops.fastrnn, case, p)
        theirs, want = layer_cases.expected(case, p, F32), layer_cases.expected(case, p)
        assert_as_good([f"{what} {scale}: {n}" for n in layer_cases.names(case)], got, theirs, want)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("dtype", [F32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_converged_units_pass_nothing(isa, cell, dtype, save):
    """One feature of 6e4 (1e6 in the wider types) and a weight for it: what was a gradient of 37 (LSTM), 328
    (GRU), 366 (RNN) is exactly 0."""
    case = Case(cell, 3, 4, 1, 18, dtype=dtype, save=save)
    p = layer_cases.problem(case)
    x = torch.full_like(p.x, 6e4 if dtype == torch.float16 else 1e6)
    w_ih = p.weights[0]
    p = replace(p, x=x, weights=[w_ih.sign(), *p.weights[1:]])
    names = layer_cases.names(case)
    for name, g in zip(names, layer_cases.fused(torch.ops.fastrnn, case, p), strict=True):
        if name == "grad x" or name.startswith("grad w_ih") or name.startswith("grad b"):
            if cell == "lstm":  # its candidate and gates converge; the cell behind them need not
                assert (g == 0).all(), name
            else:
                assert not g.any(), name


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [30.0, 200.0, 60000.0])
def test_saturated_gates(isa, cell, dtype, scale):
    """exp neither overflows nor gives NaN: gates of exactly 0 and 1, gradients that vanish."""
    case = Case(cell, 3, 4, 1, 9, dtype=dtype)
    p = layer_cases.problem(case)
    # Signs alone, so that no gate is near 0, where its error would be that of numbers as large as scale.
    p = replace(p, x=p.x.sign() * scale, weights=[p.weights[0].sign(), *p.weights[1:]])
    got, want = layer_cases.differentiated(case, p), layer_cases.expected(case, p)
    for name, a, b in zip(layer_cases.names(case), got, want, strict=True):
        if name.startswith("grad"):
            assert a.isfinite().all(), name
        else:
            assert_close(a, b, dtype, what=name)


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("what", ["u", "x", "c0"])
def test_sru(isa, tanh, what):
    for case in (sru_cases.Case(tanh=tanh, dtype=F32), sru_cases.Case(tanh=tanh, dtype=F32, D=2, pad=True)):
        for scale in SCALES:
            p = sru_cases.problem(case)
            t = p.inputs[what]
            p.inputs[what] = (t + 0.3 * t.sign()) * scale
            got = sru_cases.fused(torch.ops.fastrnn, case, p)
            names = [f"{what} {scale}: {n}" for n in sru_cases.names(case)]
            assert_as_good(names, got, sru_cases.expected(case, p, F32), sru_cases.expected(case, p))
