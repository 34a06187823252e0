"""Where NaN and infinity go: to every result that they would reach in torch, and to no other row.

torch itself lets a NaN cross from one sample into others on some devices; here the rows of a batch meet in
the gradients of the weights alone.
"""

from __future__ import annotations

from dataclasses import replace

import layer_cases
import pytest
import sru_cases
import torch
from layer_cases import CELLS, PACKED, Case, Problem
from torch import Tensor

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
NAN, INF = float("nan"), float("inf")

#: Rows that share tiles with others and rows beside the padding of a tile; too few rows to pack weights for;
#: packed sequences, lengths, resets; a projection; half types, with their own products, whose pairs an odd
#: number of units does not fill.
CASES = [
    *(Case(cell, 5, 13, 4, 33, dtype=F32) for cell in CELLS),
    *(Case(cell, 4, 7, 5, 18, D=2, dtype=F32, save="recompute") for cell in CELLS),
    *(Case(cell, 1, 3, 4, 18, dtype=F32, save=save) for cell in CELLS for save in ("gates", "recompute")),
    *(Case(cell, IN=3, H=18, D=2, dtype=F32, sizes=PACKED) for cell in CELLS),
    *(Case(cell, 4, 6, 3, 18, dtype=F32, lengths=(2, 4, 3, 4)) for cell in CELLS),
    *(Case(cell, 4, 6, 3, 18, D=2, dtype=F32, reset="some", save="recompute") for cell in CELLS),
    *(Case(cell, 4, 7, 5, 19, dtype=dtype) for cell in CELLS for dtype in (BF16, F16, torch.float64)),
    *(Case("lstm", 4, 7, 5, 19, P=6, D=2, dtype=F32, save=save) for save in ("gates", "recompute")),
    Case("lstm", 1, 2, 5, 19, P=6, dtype=BF16),
]
ROW = 1


def spoilt(p: Problem, what: str, value: float) -> Problem:
    """The problem with one number replaced, in row 1 where it is a row's."""
    p = p.map(torch.clone)
    p.weights = [w.clone() for w in p.weights]
    if what == "x":
        (p.x[0, ROW] if p.x.dim() == 3 else p.x[ROW])[0] = value
    elif what == "grad y":
        (p.cotangents[0][-1, ROW] if p.x.dim() == 3 else p.cotangents[0][ROW])[2] = value
    elif what == "grad hn":
        p.cotangents[1][-1, ROW, 2] = value
    elif what in ("h0", "c0"):
        getattr(p, what)[0, ROW, 2] = value
    else:
        w = p.weights[("w_ih", "w_hh", "b_ih", "b_hh").index(what)]
        w.view(-1)[len(w.view(-1)) // 2] = value
    return p


@pytest.mark.parametrize("case", CASES, ids=str)
def test_where_it_goes(isa, case):
    """Protects who watches for NaN (a loss scaler, detect_anomaly, a check of the gradients): a result that
    would be NaN in torch is, relu's gradient too."""
    p = layer_cases.problem(case)
    names = layer_cases.names(case)
    places = ["x", "h0", "w_ih", "w_hh", "b_ih", "b_hh", "grad y", "grad hn"] + ["c0"] * (case.cell == "lstm")
    for what in places:
        q = spoilt(p, what, NAN)
        got, want = layer_cases.fused(torch.ops.fastrnn, case, q), layer_cases.expected(case, q)
        for name, g, w in zip(names, got, want, strict=True):
            if case.lengths and what.startswith("w_"):
                # The reference takes 0 times the weight at steps behind a row's end, which no kernel visits.
                assert not (g.isnan() & ~w.isnan()).any(), f"NaN in {what}: {name}"
            else:
                assert torch.equal(g.isnan(), w.isnan()), f"NaN in {what}: {name}"
        if what in ("w_hh", "w_ih") and not case.sizes and not case.masked:
            assert any(g.isnan().any() for n, g in zip(names, got, strict=True) if n.startswith("grad"))


@pytest.mark.parametrize("case", [c for c in CASES if not c.lengths], ids=str)
@pytest.mark.parametrize("value", [INF, -INF])
def test_where_infinity_goes(isa, case, value):
    """What is NaN or infinite in torch is so here. Not with lengths: there the reference multiplies an
    infinite weight by the zeros that it puts behind a row's end, and no kernel visits those steps."""
    p = layer_cases.problem(case)
    names = layer_cases.names(case)
    for what in ["x", "h0", "w_ih", "grad y"] + ["c0"] * (case.cell == "lstm"):
        q = spoilt(p, what, value)
        got, want = layer_cases.fused(torch.ops.fastrnn, case, q), layer_cases.expected(case, q)
        for name, g, w in zip(names, got, want, strict=True):
            assert torch.equal(g.isfinite(), w.isfinite()), f"{value} in {what}: {name}"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("value", [NAN, INF])
def test_other_rows_do_not_see_it(isa, case, value):
    """Bit for bit: outputs, final states and gradients of every other row, wherever the bad number was."""
    p = layer_cases.problem(case)
    clean = layer_cases.fused(torch.ops.fastrnn, case, p)
    rows = row_numbers(p)
    for what in ["x", "h0", "grad y", "grad hn"] + ["c0"] * (case.cell == "lstm"):
        dirty = layer_cases.fused(torch.ops.fastrnn, case, spoilt(p, what, value))
        for name, a, b in zip(layer_cases.names(case), clean, dirty, strict=True):
            if "w_" in name or "b_" in name:  # a sum over the rows
                continue
            if a.dim() == 2:  # packed
                keep = rows != ROW
                assert same(a[keep], b[keep]), f"{value} in {what}: {name}"
            else:
                keep = torch.arange(a.size(1)) != ROW
                assert same(a[:, keep], b[:, keep]), f"{value} in {what}: {name}"


def row_numbers(p: Problem) -> Tensor | None:
    """The batch's row of each row of a packed sequence."""
    if p.batch_sizes is None:
        return None
    return torch.cat([torch.arange(int(n)) for n in p.batch_sizes])


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit. Beyond a row's length there is nothing."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_threads_do_not_spread_it(threads, cell, count):
    """Rows and units shared out among threads."""
    threads(count)
    for shape in ((6, 40, 20, 48), (9, 2, 30, 130)):
        case = Case(cell, *shape, dtype=F32)
        test_other_rows_do_not_see_it(None, case, NAN)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(5, 9, 4, 18), (1, 3, 4, 18)])
def test_a_bad_row_stays_alone(isa, cell, bad, shape):
    """NaN in one row of the batch: the other rows, and their gradients, are what they were."""
    case = Case(cell, *shape, D=2, dtype=F32)
    p = layer_cases.problem(case)
    x = p.x.clone()
    x[0, 1] = bad
    clean, dirty = layer_cases.differentiated(case, p), layer_cases.differentiated(case, replace(p, x=x))
    rows = [i for i in range(case.B) if i != 1]
    for name, a, b in zip(layer_cases.names(case), clean, dirty, strict=True):
        if "w_" not in name and "b_" not in name:  # a weight's gradient is a sum over rows
            assert torch.equal(a[:, rows], b[:, rows]), name
    if bad != bad:
        assert dirty[0][:, 1, : case.H].isnan().all()  # the direction that starts there


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_closed_gates_and_infinities(isa, dtype):
    """A gate that is closed for good is exactly 0, so that an infinity behind it gives NaN as in torch, and
    not what the smallest number that is left of the gate lets through."""
    case = Case("lstm", 2, 3, 1, 9, dtype=dtype)
    p = layer_cases.problem(case)
    weights = [w.clone() for w in p.weights]
    weights[2][9:18] = -1e4  # the forget gate's bias
    for c0 in (p.c0, torch.full_like(p.c0, float("inf"))):
        _, _, cn, *_ = layer_cases.differentiated(case, replace(p, c0=c0, weights=weights))
        assert cn.isnan().all() if c0.isinf().all() else cn.isfinite().all()

    case = Case("gru", 1, 3, 1, 9, dtype=dtype)
    p = layer_cases.problem(case)
    weights = [w.clone() for w in p.weights]
    weights[2][:9] = -1e4  # the reset gate's bias
    weights[3][18:] = float("inf")  # what it closes off
    assert layer_cases.differentiated(case, replace(p, weights=weights))[0].isnan().all()


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16, F16, torch.float64], ids=str)
def test_sru(isa, tanh, dtype):
    """The SRU's scan: where it goes in torch, and in no other column."""
    for options in ({"skip": "x"}, {"skip": "u", "D": 2}, {"skip": "none", "sizes": PACKED}, {"pad": True}):
        case = sru_cases.Case(tanh=tanh, dtype=dtype, O=18, v=True, drop=True, **options)
        p = sru_cases.problem(case)
        clean = sru_cases.fused(torch.ops.fastrnn, case, p)
        for what in ("u", "c0", "x", "v", "grad h"):
            if what in p.inputs and p.inputs[what] is None:
                continue
            q = p.map(torch.clone)
            t = q.cotangents[0] if what == "grad h" else q.inputs[what]
            t = t.view(-1, *t.shape[2:]) if what != "c0" and case.sizes is None else t
            # Not a pad: nobody reads what lies there. Its gradients are 0, where the reference has 0 * NaN.
            row = 1 if p.mask_pad is None or what == "c0" else p.mask_pad.flatten().int().argmin()
            t[row].view(-1)[3] = NAN  # feature 3
            got, want = sru_cases.fused(torch.ops.fastrnn, case, q), sru_cases.expected(case, q)
            for name, a, g, w in zip(sru_cases.names(case), clean, got, want, strict=True):
                if p.mask_pad is not None and g.shape[:2] == p.mask_pad.shape:
                    w = w.masked_fill(p.mask_pad.view(*p.mask_pad.shape, *[1] * (g.dim() - 2)), 0)
                assert torch.equal(g.isnan(), w.isnan()), f"{case}, {what}: {name}"
                elsewhere = torch.arange(18) != 3
                assert torch.equal(a[..., elsewhere], g[..., elsewhere]), f"{case}, {what}: {name}"
