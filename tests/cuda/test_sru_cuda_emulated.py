"""The CUDA kernels of the SRU's scan, and the host code around them, run on the CPU by the emulator.

What a GPU adds to this is its arithmetic (approximate exp2 and 1/x), its scheduling and its memory system.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from emu.faults import assert_found, outcomes
from emu.planted.scan import FAULTS
from layer_cases import DTYPES, PACKED
from sru_cases import INPUTS, Case, backward, check, expected, forward, fused, grid, names, problem, worst

import fastrnn  # noqa: F401  loads torch.ops.fastrnn

FULL = Case(D=2, v=True, pad=True, drop=True, tanh=True)


@pytest.mark.parametrize("case", grid(), ids=str)
def test_grid(ops, case):
    """Results and every gradient, with every tensor at a guard page and all fresh memory NaN."""
    ops.configure(len(str(case)))
    check(ops, case, ops.guarded if not case.strided else lambda t: t)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("L", [1, 3, 4, 5, 19, 20, 21, 23, 24, 25, 47, 60])
def test_lengths(ops, dtype, L):
    """Around the steps of a group of copies (4), those on their way (20) and those of the ring (24)."""
    ops.configure(L)
    check(ops, Case(L=L, B=2, O=3, dtype=dtype, pad=True), ops.guarded)
    check(ops, replace(FULL, L=L, B=1, O=28, dtype=dtype, skip="u"), ops.guarded)


@pytest.mark.parametrize("seed", range(6))
def test_schedules(ops, seed):
    """Copies that land at once and as late as they may."""
    ops.configure(seed)
    check(ops, replace(FULL, L=50, dtype=torch.float32), ops.guarded)
    check(ops, Case(sizes=(7, *[5] * 30, 3, 1), D=2, O=14, dtype=torch.bfloat16, skip="u"), ops.guarded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "which", ["nothing", "u", "x", "v", "weight_c", "c0", "drop_mask", "grad_h", "O", "H"]
)
def test_half_types_at_odd_addresses(ops, which, dtype):
    """Pairs where every address allows it; one tensor that begins at an odd place, or odd sizes, and single
    values are taken from the words that hold them. The results are the same bits."""
    shape = {"O": 33, "H": 30}.get(which, 32)
    case = Case(L=9, B=2, O=shape, D=1 if which == "O" else 2, v=True, drop=True, pad=True, dtype=dtype)
    p = problem(case)
    want = fused(ops, case, p)

    def odd(t):
        return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t)

    if which in p.inputs:
        p.inputs[which] = odd(p.inputs[which])
    elif which == "drop_mask":
        p.drop_mask = odd(p.drop_mask)
    elif which == "grad_h":
        p.cotangents[0] = odd(p.cotangents[0])
    got = fused(ops, case, p)
    for name, a, b in zip(names(case), got, want, strict=True):
        assert torch.equal(a, b), name
    ratio, what = worst(case, got, expected(case, p))
    assert ratio <= 1, what


@pytest.mark.parametrize("B", [1, 8, 9, 100])
def test_sums_over_rows(ops, B):
    """Fewer and more rows than a block of the second pass takes at once."""
    check(ops, Case(L=2, B=B, O=9, dtype=torch.float32), ops.guarded)


@pytest.mark.parametrize("case", [FULL, Case(sizes=PACKED, dtype=torch.bfloat16, D=2, skip="u")], ids=str)
def test_backward_twice_and_inputs_untouched(ops, case):
    p = problem(case)
    cells = forward(ops, case, p)[2]
    held = [cells, *(t for t in p.arguments if t is not None), *p.cotangents]
    before = [t.clone() for t in held]
    first, second = backward(ops, case, p, cells), backward(ops, case, p, cells)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


@pytest.mark.parametrize("needs", [0, 1, 2, 4, 8, 16, 5])
def test_only_what_is_needed(ops, needs):
    """What is not asked for comes back empty, and what is, unchanged by it."""
    p = problem(FULL)
    cells = forward(ops, FULL, p)[2]
    everything, some = backward(ops, FULL, p, cells), backward(ops, FULL, p, cells, needs)
    for bit, name, got, all_of_it in zip((1, 2, 4, 4, 8, 16), INPUTS, some, everything, strict=True):
        assert torch.equal(got, all_of_it) if needs & bit else got.shape == (0,), name


@pytest.mark.parametrize("absent", [{0}, {1}, {0, 1}])
def test_absent_gradients_are_zero(ops, absent):
    p = problem(FULL)
    cells = forward(ops, FULL, p)[2]
    p.cotangents = [torch.zeros_like(g) if i in absent else g for i, g in enumerate(p.cotangents)]
    want = backward(ops, FULL, p, cells)
    p.cotangents = [None if i in absent else g for i, g in enumerate(p.cotangents)]
    got = backward(ops, FULL, p, cells)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("L", "B"), [(4, 0), (0, 3), (0, 0)])
def test_nothing_to_do(ops, L, B):
    """No rows or no steps: c is c0, the sums are zeros."""
    case = replace(FULL, L=L, B=B, dtype=torch.float32)
    p = problem(case)
    got = dict(zip(names(case), fused(ops, case, p), strict=True))
    assert torch.equal(got["c"], p.inputs["c0"])
    assert torch.equal(got["grad c0"], p.cotangents[1])
    assert not got["grad weight_c"].any()
    assert not got["grad bias"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [None, PACKED])
def test_saved_cells_are_the_cpus(ops, sizes, dtype):
    """CPU and CUDA save the same: either's backward works on what the other's forward left."""
    case = Case(D=2, O=14, sizes=sizes, dtype=dtype, skip="u", drop=True)
    p = problem(case)
    want = expected(case, p)
    for first, second in ((ops, torch.ops.fastrnn), (torch.ops.fastrnn, ops)):
        h, c, cells = forward(first, case, p)
        gradients = [
            g
            for g, t in zip(backward(second, case, p, cells), p.inputs.values(), strict=True)
            if t is not None
        ]
        ratio, what = worst(case, [h, c, *gradients], want)
        assert ratio <= 1, what


def test_bad_input_is_one_error(ops):
    """The CUDA ops make the checks that csrc/ops/scan_args.h holds for every device."""
    p = problem(FULL)
    cells = forward(ops, FULL, p)[2]
    with pytest.raises(RuntimeError, match="cells: expected"):
        backward(ops, FULL, p, cells[1:])
    p.inputs["c0"] = p.inputs["c0"][:, 1:]
    with pytest.raises(RuntimeError, match=r"c0: expected shape \(3, 6\), got \(3, 5\)"):
        forward(ops, FULL, p)


@pytest.fixture(scope="module")
def found(request):
    return outcomes(request, FAULTS, "emu.sru_checks")


def test_no_fault_no_race(found):
    """No two warps touch the same memory without a barrier between, and the results are right."""
    assert found[None].get("worst", 2) <= 1, found[None]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(found, fault):
    """Deliberate faults in the kernels: the cases would not let them pass."""
    assert_found(fault, found[fault])
