"""The SRU's scan on the CPU against the plain-torch recurrence in float64: outputs and every gradient, on
every instruction set.

The sizes are chosen around what the kernels are cut into: registers of 2 to 16 lanes, blocks of 64 features,
rows whose state fits a cache, sums that move to double every 256 rows.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import sru_cases
import torch
from layer_cases import PACKED
from selection import some
from sru_cases import Case, expected, fused, grid, names, problem, worst
from tolerances import TOLERANCES, error
from torch import Tensor

OPS = torch.ops.fastrnn
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
FULL = Case(D=2, v=True, pad=True, drop=True, tanh=True)


def _equal(first, second) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", grid(), ids=str)
def test_grid(isa, case):
    """Every option in every dtype: results and gradients are the reference's."""
    sru_cases.check(OPS, case)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("O", [1, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129, 258])
def test_odd_sizes(isa, dtype, O):  # noqa: E741
    """Tails of every register width, on both sides of the boundary between directions."""
    sru_cases.check(OPS, Case(L=3, B=2, O=O, dtype=dtype))
    sru_cases.check(OPS, replace(FULL, L=3, B=2, O=2 * O, dtype=dtype, skip="u"))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "case",
    [
        Case(L=9, B=13, O=200, dtype=F32),
        Case(L=40, B=1, O=1000, dtype=F32, D=2),  # units are split, a direction each
        Case(L=40, B=1, O=1025, dtype=F32),
        Case(L=30, B=3, O=330, dtype=F32, D=2, skip="u", pad=True),
        Case(O=130, dtype=F32, D=2, sizes=(60, 60, 41, 17, 17, 3, 1, 1), v=True),
        Case(L=400, B=2, O=70, dtype=F32, skip="none"),  # sums move to double
        Case(L=3, B=140, O=1030, dtype=F32),  # rows in several turns
    ],
    ids=str,
)
def test_threads(threads, case, count):
    """However the columns are shared out, the result is right, and the same bits in every run."""
    threads(count)
    p = problem(case)
    got = fused(OPS, case, p)
    ratio, what = worst(case, got, expected(case, p))
    assert ratio <= 1, what
    assert all(_equal(got, fused(OPS, case, p)) for _ in range(3))


LARGE = [(F32, "x", 512), (BF16, "u", 1024), (F64, "none", 256), (F32, "u", 333)]


@pytest.mark.parametrize("large", some(LARGE, lambda case: case[0] == F32), ids=str)
def test_results_larger_than_the_cache(isa, threads, large):
    """Stores past the cache, with and without a tail, are seen by whoever reads next."""
    threads(2)
    dtype, skip, width = large
    case = Case(L=24, B=600, O=width, dtype=dtype, skip=skip, D=2 if width % 2 == 0 else 1)
    p = problem(case)
    got = fused(OPS, case, p)

    # The reference on a few rows: rows of the batch are independent but for the sums.
    def few(t: Tensor) -> Tensor:
        return t[:, ::199] if t.dim() > 2 else t[::199] if t.size(0) == 600 else t

    want = expected(case, p.map(few))
    for name, a, b in zip(names(case), got, want, strict=True):
        if name not in ("grad weight_c", "grad bias"):
            limit = TOLERANCES[dtype][name.startswith("grad")]
            assert error(few(a), b) <= limit, f"{case} {name}"


def test_long_sums_keep_their_digits(isa):
    """100,000 terms of one sign in float32: a plain float sum would be off by 1e-4 or more.

    The terms of the bias are the gradients of u's gates, bit for bit, so the sum can be held to its own
    terms, whatever the instruction set makes of tanh and sigmoid. With u = 2**-24: a block of 256 terms in
    float is off by about sqrt(256) u, the mean of 391 such blocks by sqrt(256 / 391) u, and the result rounds
    once
    more: 2 u.
    """
    case = Case(L=2000, B=50, O=4, dtype=F32, skip="none")
    p = problem(case)
    p.inputs["u"].abs_()
    p.cotangents = [g.abs() for g in p.cotangents]
    got, want = fused(OPS, case, p), expected(case, p)
    ratio, what = worst(case, got, want)
    assert ratio <= 1, what
    terms = got[names(case).index("grad u")][:, :, 1:].double()
    off = (got[names(case).index("grad bias")].double() - terms.sum((0, 1))).abs()
    assert (off / terms.abs().sum((0, 1))).max() < 2 * 2**-24


@pytest.mark.parametrize("sizes", [None, PACKED])
@pytest.mark.parametrize("O", [8, 33])
def test_huge_strides(isa, sizes, O):  # noqa: E741
    """Rows of u, x and grad_h further apart than 32 bits can say."""
    try:
        buffer = torch.empty(2**31 + 2**21, dtype=F32)  # of which a few pages are touched
    except RuntimeError as raised:
        pytest.skip(f"this machine promises no memory that it may not have: {raised}")
    case = Case(L=2, B=1, O=O, dtype=F32, sizes=(1, 1) if sizes else None)
    p = problem(case)
    want = expected(case, p)
    far = 2**31 + 2**20
    for name in ("u", "x", "h"):
        q = problem(case)
        tensors = {**q.inputs, "h": q.cotangents[0]}
        t = tensors[name]
        strides = [far, *t.stride()[1:]]
        apart = buffer.as_strided(t.shape, strides).copy_(t)
        if name == "h":
            q.cotangents[0] = apart
        else:
            q.inputs[name] = apart
        ratio, what = worst(case, fused(OPS, case, q), want)
        assert ratio <= 1, f"{name}: {what}"


@pytest.mark.parametrize("scale", [30.0, 1000.0, 60000.0])
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
def test_saturated_gates(isa, dtype, scale):
    """Gates of exactly 0 and 1: neither NaN nor infinity, and the reference's results."""
    case = Case(dtype=dtype, O=9)
    p = problem(case)
    u = p.inputs["u"]
    u[..., 1:, :] = u[..., 1:, :].sign() * scale
    ratio, what = worst(case, fused(OPS, case, p), expected(case, p))
    assert ratio <= 1, what


@pytest.mark.parametrize("D", [1, 2])
def test_a_bad_row_stays_alone(isa, D):
    """NaN in one row of the batch, and in pads: the others' results are what they were, bit for bit."""
    case = Case(L=4, B=3, O=34, D=D, dtype=F32, pad=True)
    p = problem(case)
    clean = fused(OPS, case, p)
    p.inputs["u"][:, 1] = float("nan")
    dirty = fused(OPS, case, p)
    for name, a, b in zip(names(case), clean, dirty, strict=True):
        if name not in ("grad weight_c", "grad bias"):  # sums over the rows
            rows = a.dim() - 2 if name in ("h", "c", "grad x", "grad c0") else 1
            assert torch.equal(a.select(rows, 0), b.select(rows, 0)), name
            assert torch.equal(a.select(rows, 2), b.select(rows, 2)), name
    q = problem(case)
    q.inputs["u"][q.mask_pad] = float("nan")
    q.inputs["x"][q.mask_pad] = float("nan")
    assert _equal(clean, fused(OPS, case, q))


def test_a_row_of_pads():
    """c passes through unchanged, h and the gradients of its steps are zeros, c0's gradient is c's."""
    case = Case(dtype=F32, D=2, pad=True)
    p = problem(case)
    p.mask_pad.zero_()[:, 1] = True
    h, c, du, dx, _, _, dc0 = fused(OPS, case, p)
    assert not h[:, 1].any()
    assert not du[:, 1].any()
    assert not dx[:, 1].any()
    assert torch.equal(c[1], p.inputs["c0"][1])
    assert torch.equal(dc0[1], p.cotangents[1][1])


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("skip", ["x", "u", "none"])
@pytest.mark.parametrize(("L", "B"), [(4, 0), (0, 3), (0, 0)])
def test_nothing_to_do(L, B, D, skip):
    """No rows or no steps: shapes as always, c is c0, the sums are zeros."""
    case = Case(L=L, B=B, D=D, skip=skip, v=True, pad=True, drop=True, dtype=F32)
    p = problem(case)
    got = dict(zip(names(case), fused(OPS, case, p), strict=True))
    shapes = {"h": p.cotangents[0].shape, "c": p.inputs["c0"].shape}
    for name, t in got.items():
        assert t.shape == shapes.get(name) or t.shape == p.inputs[name.removeprefix("grad ")].shape, name
    assert torch.equal(got["c"], p.inputs["c0"])
    assert torch.equal(got["grad c0"], p.cotangents[1])
    assert not got["grad weight_c"].any()
    assert not got["grad bias"].any()


# ---- rows that begin anew, and every step's state ---------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "case",
    [
        Case(L=30, B=3, O=330, dtype=F32, D=2, skip="u", pad=True, reset=True, states=True),
        Case(L=3, B=140, O=1030, dtype=F32, reset=True, states=True),  # rows in several turns
        Case(L=400, B=2, O=70, dtype=F32, skip="none", reset=True),  # sums move to double
    ],
    ids=str,
)
def test_rows_on_several_threads(threads, case, count):
    """The zeros that a row begins with, and the gradients of c, wherever the columns are."""
    threads(count)
    sru_cases.check(OPS, case)


@pytest.mark.parametrize("D", [1, 2])
def test_nothing_passes_a_reset(isa, D):
    """A row cut at step 3 is two rows: the very numbers of two calls, with NaN on the other side too."""
    case = Case(L=7, B=2, O=34, D=D, dtype=F32, reset=True, states=True)
    p = problem(case)
    p.reset.zero_()[3] = True
    got = dict(zip(names(case), fused(OPS, case, p), strict=True))

    def part(steps: slice, forward_state: bool, reverse_state: bool) -> dict[str, Tensor]:
        q = problem(replace(case, reset=False))
        for name in ("u", "x"):
            q.inputs[name] = q.inputs[name][steps]
        q.cotangents[0] = q.cotangents[0][steps]
        q.grad_cells = q.grad_cells.view(7, 2, 34)[steps].flatten(0, 1)
        for t in (q.inputs["c0"], q.cotangents[1]):  # a direction's half begins, or ends, in this part
            for half, keep in zip(t.chunk(D, -1), (forward_state, reverse_state), strict=False):
                half.mul_(keep)
        return dict(zip(names(case), fused(OPS, replace(case, reset=False), q), strict=True))

    # c0 of a direction belongs to the part where it begins, the last c to the one where it ends.
    first, second = part(slice(0, 3), True, False), part(slice(3, 7), False, True)
    for name in ("h", "cells"):
        a = torch.cat([first[name].reshape(-1, 34), second[name].reshape(-1, 34)])
        assert torch.equal(got[name].reshape(-1, 34), a), name
    halves = 34 // D
    assert torch.equal(got["c"][:, :halves], second["c"][:, :halves])
    if D == 2:
        assert torch.equal(got["c"][:, halves:], first["c"][:, halves:])
    p.inputs["u"][3:] = float("nan")
    p.cotangents[0][3:] = float("nan")
    p.grad_cells.view(7, 2, 34)[3:] = float("nan")
    p.cotangents[1][:, :halves] = float("nan")  # the forward direction ends beyond the cut
    p.inputs["c0"][:, halves:] = float("nan")  # and the reverse one begins there
    dirty = dict(zip(names(case), fused(OPS, case, p), strict=True))
    for name in ("h", "grad u", "grad x"):
        assert torch.equal(dirty[name][:3], got[name][:3]), name


def test_a_reset_at_the_first_step_drops_c0():
    """Of the forward direction; the reverse one ends there with its state."""
    case = Case(L=3, B=2, O=8, D=2, dtype=F32, reset=True)
    p = problem(case)
    p.reset.zero_()[0] = True
    got = dict(zip(names(case), fused(OPS, case, p), strict=True))
    assert not got["grad c0"][:, :4].any()
    assert got["grad c0"][:, 4:].all()
    plain = dict(zip(names(case), fused(OPS, case, problem(replace(case, reset=False))), strict=True))
    assert torch.equal(got["c"][:, 4:], plain["c"][:, 4:])
    assert not torch.equal(got["c"][:, :4], plain["c"][:, :4])
