"""The persistent kernels and the scan on large numbers and NaN, by the emulator.

Its approximate functions err as much as PTX allows: the reciprocal of 1 by 1e-7, tanh by 2.4e-4.
"""

from __future__ import annotations

from dataclasses import replace

import persistent_cases
import pytest
import sru_cases
import torch
from persistent_cases import CELLS, PRECISIONS, TIERS, Case

F32 = torch.float32
NAN = float("nan")


def kernels() -> list[tuple[str, str, int]]:
    """(precision, tier, H), every one that there is: one CTA has kernels of its own for whole tiles, and
    the grid's weights of so many units are not all in registers."""
    found = [(p, t, 18) for p in PRECISIONS for t in TIERS if (p, t) != ("float32", "cluster")]
    whole = [(p, "one CTA", 32) for p in PRECISIONS]
    return found + whole + [("float32", "grid", 400), ("tf32", "grid", 530)]


@pytest.mark.parametrize(("precision", "tier", "H"), kernels())
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_converged_units_pass_nothing(ops, cell, precision, tier, H):
    """Gates of exactly 0 and 1, candidates of -1 and 1: no gradient is left to meet inputs of any size."""
    case = Case(cell, precision, tier, T=3, B=3, H=H)
    p = persistent_cases.problem(case)
    p = replace(p, gx=p.gx.sign() * 200)
    want = persistent_cases.expected(case, p)
    got = persistent_cases.fused(ops, case, p)
    assert persistent_cases.worst(case, got, want)[0] <= 1
    grad_gx = persistent_cases.names(case).index("grad gx")
    assert not got[grad_gx].any()


@pytest.mark.parametrize(("precision", "tier", "H"), kernels())
@pytest.mark.parametrize("cell", CELLS)
def test_nan(ops, cell, precision, tier, H):
    """To every result that it would reach in torch, relu's gradient too; from a row to no other row."""
    case = Case(cell, precision, tier, T=3, B=5, H=H)
    p = persistent_cases.problem(case)
    clean = persistent_cases.fused(ops, case, p)

    for column in (3, H - 1):
        weights = [w.clone() for w in p.w_hh]
        weights[0][7, column] = NAN
        spoilt = replace(p, w_hh=weights)
        want = persistent_cases.expected(case, spoilt)
        got = persistent_cases.fused(ops, case, spoilt)
        for name, g, w in zip(persistent_cases.names(case), got, want, strict=True):
            if name != "grad gx":  # the reference's is a product with the identity, which spreads a NaN
                assert torch.equal(g.isnan(), w.isnan()), f"NaN in w_hh, column {column}: {name}"

    gx = p.gx.clone()
    gx[:, 1, 5] = NAN  # step 0, row 1
    got = persistent_cases.fused(ops, case, replace(p, gx=gx))
    rows, steps = torch.arange(5) != 1, (torch.arange(15) % 5) != 1
    for name, a, b in zip(persistent_cases.names(case), clean, got, strict=True):
        if name != "grad b_hh":  # a sum over rows
            keep = steps if a.size(-2) == 15 else rows
            assert torch.equal(a[..., keep, :], b[..., keep, :]), name
    assert got[0].view(3, 5, -1)[:, 1].isnan().any()


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_scan_converged(ops, tanh, dtype):
    """The SRU's gates at 0 and 1: none of their gradient is left, whatever c is."""
    case = sru_cases.Case(O=12, tanh=tanh, dtype=dtype)
    p = sru_cases.problem(case)
    p.inputs["u"][:, :, 1:] = p.inputs["u"][:, :, 1:].sign() * 3e4
    p.inputs["c0"] *= 10
    got = sru_cases.fused(ops, case, p)
    grad_u = got[sru_cases.names(case).index("grad u")]
    assert not grad_u[:, :, 1:].any()
    assert sru_cases.worst(case, got, sru_cases.expected(case, p))[0] <= 1
