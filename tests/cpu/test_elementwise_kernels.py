"""The kernels of linear_scan, MinGRU, MinLSTM, IndRNN and the sLSTM against their definitions in float64:
outputs, states and every gradient, on every instruction set.

Sizes lie around what the kernels are cut into: registers of 2 to 16 lanes, blocks of 64 units, tiles of 3 to
8 rows, rows whose state fits a cache, parts of a sequence that is shared out among threads.
"""

from __future__ import annotations

import pytest
import torch
from elementwise_cases import (
    BF16,
    CELLS,
    F16,
    F32,
    F64,
    NAMES,
    STATES,
    Case,
    check,
    computed,
    expected,
    inputs_of,
)
from helpers import randn
from tolerances import error

import fastrnn
from fastrnn._ops import elementwise


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("cell", [*CELLS, "slstm"])
def test_grid(isa, cell, dtype):
    """Every option: directions, first states, lengths, resets."""
    for reverse in (False, True):
        for start in (False, True):
            for lengths in (False, True):
                for reset in (False, True):
                    case = Case(cell, dtype=dtype, reverse=reverse, start=start, lengths=lengths, reset=reset)
                    check(case)


@pytest.mark.parametrize("H", [1, 2, 7, 15, 16, 17, 33, 64, 65, 129])
@pytest.mark.parametrize("cell", CELLS)
def test_odd_sizes(isa, cell, H):
    """Tails of every register width."""
    for dtype in (F32, F64, BF16):
        check(Case(cell, T=3, B=2, H=H, dtype=dtype))
        check(Case(cell, T=1, B=1, H=H, dtype=dtype, reverse=True))


@pytest.mark.parametrize(
    ("B", "H", "heads"),
    [(1, 1, 1), (2, 6, 3), (5, 17, 1), (7, 32, 2), (13, 48, 1), (3, 99, 3), (8, 40, 5), (4, 130, 2)],
)
def test_slstm_sizes(isa, B, H, heads):
    """Heads that fill no register, one and several; tiles of every height."""
    for dtype in (F32, F64, F16):
        check(Case("slstm", T=5, B=B, H=H, heads=heads, dtype=dtype))
        check(Case("slstm", T=4, B=B, H=H, heads=heads, dtype=dtype, reverse=True, lengths=True, reset=True))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "case",
    [
        *(Case(cell, T=40, B=9, H=200) for cell in ("linear", "minlstm", "indrnn_tanh")),
        Case("linear", T=9, B=1, H=2000),  # units are split
        Case("mingru", T=2, B=150, H=1030),  # rows in several turns
        Case("indrnn_relu", T=300, B=5, H=70),  # sums move to double
        Case("slstm", T=20, B=9, H=64, heads=1),  # rows are split
        Case("slstm", T=20, B=5, H=64, heads=4),  # heads are
        Case("slstm", T=20, B=5, H=96, heads=3, lengths=True, reset=True, reverse=True),
    ],
    ids=str,
)
def test_threads(threads, case, count):
    """However the columns are shared out, the result is right, and the same bits in every run."""
    threads(count)
    check(case)
    first = computed(case)
    for _ in range(3):
        assert all(a is b or torch.equal(a, b) for a, b in zip(first, computed(case), strict=True))


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("cell", CELLS[:5])
def test_parts_of_a_sequence(threads, isa, cell, count):
    """Few columns and many steps: threads take parts of it, with lengths and resets in all of them."""
    threads(count)
    for reverse in (False, True):
        check(Case(cell, T=1200, B=1, H=20, reverse=reverse))
        check(Case(cell, T=1100, B=2, H=9, reverse=reverse, dtype=F64, start=False))
        check(Case(cell, T=1300, B=1, H=40, reverse=reverse, reset=True))
        check(Case(cell, T=1300, B=1, H=40, reverse=reverse, lengths=True, dtype=BF16))


# ---- what is no number, and what is too large for one -----------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("T", [12, 2000])
@pytest.mark.parametrize("cell", [*CELLS, "slstm"])
def test_nothing_passes_a_reset(threads, isa, cell, T, reverse):
    """No NaN and no infinity, forward or backward, in parts of a sequence either: who comes after a reset, or
    after the end of another row, has the bits that it has without."""
    threads(2)
    case = Case(cell, T=T, B=1 if T > 12 else 3, H=16, reverse=reverse)
    if cell == "slstm" and T > 12:
        case = case._replace(T=60)
        T = 60
    inputs = inputs_of(case)
    at = T // 2
    reset = torch.zeros(T, case.B, dtype=torch.bool)
    reset[at] = True
    spoilt, clean = (slice(at, None), slice(0, at)) if reverse else (slice(0, at), slice(at, None))

    def compute(inputs, seed):
        leaves = [None if t is None else t.clone().requires_grad_() for t in inputs]
        if cell == "slstm":
            y = elementwise.slstm(leaves[0], leaves[1], leaves[2:], reset=reset, reverse=reverse)[0]
        else:
            y = elementwise.scan(cell, *leaves, reset=reset, reverse=reverse)[0]
        grad = randn(*y.shape, seed=9)
        grad[clean] = seed if seed is not None else grad[clean]
        y.backward(grad)
        return y, leaves[0].grad

    want_y, want = compute(inputs, None)
    for bad in (float("nan"), float("inf")):
        broken = [None if t is None else t.clone() for t in inputs]
        broken[0][spoilt] = bad
        y, grad = compute(broken, None)
        assert torch.equal(y[clean], want_y[clean])
        assert torch.equal(grad[clean], want[clean])
        y, grad = compute(inputs, bad)
        assert torch.equal(grad[spoilt], want[spoilt])


@pytest.mark.parametrize("cell", [*CELLS, "slstm"])
def test_rows_do_not_meet(isa, cell):
    """A NaN of one row reaches none of another, and what lies beyond a row's end is not read."""
    case = Case(cell, B=5, H=18)
    inputs = inputs_of(case)
    lengths = torch.tensor([7, 3, 7, 0, 7])
    for reverse in (False, True):
        options = {"lengths": lengths, "reverse": reverse}

        def compute(inputs, options=options):
            leaves = [None if t is None else t.clone().requires_grad_() for t in inputs]
            if cell == "slstm":
                y, last = elementwise.slstm(leaves[0], leaves[1], leaves[2:], **options)
            else:
                y, *last = elementwise.scan(cell, *leaves, **options)
            torch.autograd.backward([y, *last], [torch.ones_like(t) for t in (y, *last)])
            return y, *last, leaves[0].grad.transpose(0, 1), leaves[-1].grad

        want = compute(inputs)
        broken = [None if t is None else t.clone() for t in inputs]
        broken[0][3:, 1] = float("nan")
        broken[0][:, 3] = float("inf")
        for a, b in zip(compute(broken), want, strict=True):
            assert torch.equal(a, b)
        broken[0][:, 2] = float("nan")
        for a, b in zip(compute(broken)[1:], want[1:], strict=True):
            for row in (0, 1, 3, 4):
                assert torch.equal(a[row], b[row])


def test_products_beyond_all_numbers(threads):
    """Of a state of zero nothing is left, however much it is multiplied; of an infinite one everything is."""
    threads(3)
    a, b = torch.full((4000, 1, 8), 1e30), torch.zeros(4000, 1, 8)
    for reverse in (False, True):
        assert not fastrnn.functional.linear_scan(a, b, reverse=reverse).any()
        h = fastrnn.functional.linear_scan(0.5 * torch.ones_like(a), b, torch.full((1, 8), torch.inf))
        assert torch.isinf(h).all()


def test_closed_gates():
    """Gates of hundreds: shares of sigmoids that are no float32 are still shares."""
    for cell in ("minlstm", "mingru", "minlstm_log"):
        case = Case(cell, H=16)
        inputs = inputs_of(case)
        inputs[0] = inputs[0] * 300
        got, want = computed(case, inputs), expected(case, inputs)
        for name, g, w in zip(NAMES, got, want, strict=True):
            if g is not None:
                assert error(g, w) <= 1e-5, (cell, name)


def test_slstm_of_large_gates(isa):
    """Exponentials of hundreds are no float32, their ratios are; forward and backward."""
    case = Case("slstm", T=30, H=16, start=False)
    inputs = inputs_of(case)
    inputs[0] = inputs[0] * 100
    got, want = computed(case, inputs), expected(case, inputs)
    for name, g, w in zip(STATES, got, want, strict=True):
        if g is not None:
            assert error(g, w) <= 2e-5, name
