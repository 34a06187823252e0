"""The CUDA kernels' own source, and the host code around it, run on the CPU by the emulator of tests/emu.

What a GPU adds to this (its arithmetic units, its scheduling, cuBLAS) is in test_cuda.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from emu.faults import assert_found, outcomes
from emu.planted.layer import FAULTS
from layer_cases import (
    ALL,
    GRAD_C0,
    GRAD_H0,
    GRAD_WEIGHTS,
    GRAD_X,
    LENGTHS,
    PACKED,
    SAVES,
    Case,
    backward,
    check,
    expected,
    forward,
    fused,
    grid,
    masked_grid,
    problem,
    worst,
)

from fastrnn._ops import library
from fastrnn.reference import masked_layer


@pytest.mark.parametrize("case", grid(), ids=str)
def test_layer(ops, case):
    """Outputs and every gradient, with every tensor at a guard page and all fresh memory NaN."""
    ops.configure(len(str(case)))
    check(ops, case, ops.guarded if not case.strided else lambda t: t)


@pytest.mark.parametrize("case", masked_grid(), ids=str)
def test_lengths_and_resets(ops, case):
    """As above with rows of different lengths, NaN beyond them, and sequences that begin again."""
    ops.configure(len(str(case)))
    check(ops, case, ops.guarded if not case.strided else lambda t: t)


@pytest.mark.parametrize(
    "case", [Case("lstm", P=2), Case("gru", D=2, sizes=PACKED), Case("rnn_tanh")], ids=str
)
def test_save_modes_agree(ops, case):
    """Forward's results do not depend on what it saves, and nothing is saved where nothing is asked for."""
    p = problem(case)
    runs = {save: forward(ops, case, p, save) for save in SAVES}
    for a, b in zip(runs["nothing"][:3], runs["gates"][:3], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(runs["nothing"][:3], runs["recompute"][:3], strict=True):
        assert torch.equal(a, b)
    assert [t.shape for t in runs["nothing"][3:]] == [(0,), (0,)]
    assert runs["recompute"][3].shape == (0,)


@pytest.mark.parametrize("needs", [0, GRAD_X, GRAD_H0, GRAD_C0, GRAD_WEIGHTS, GRAD_X | GRAD_WEIGHTS])
@pytest.mark.parametrize(
    "case", [Case("lstm"), Case("lstm", P=2, D=2), Case("gru", D=2), Case("rnn_relu", sizes=PACKED)], ids=str
)
def test_only_what_is_needed(ops, case, needs):
    """What is not asked for comes back empty, and what is, unchanged by it."""
    p = problem(case)
    saved = forward(ops, case, p)
    everything, some = backward(ops, case, p, saved), backward(ops, case, p, saved, needs)
    for bit, all_of_it, got in zip((GRAD_X, GRAD_H0, GRAD_C0), everything, some, strict=False):
        assert torch.equal(got, all_of_it) if needs & bit else got.shape == (0,)
    assert len(some[3]) == (len(p.weights) if needs & GRAD_WEIGHTS else 0)
    for got, all_of_it in zip(some[3], everything[3], strict=False):
        assert torch.equal(got, all_of_it)


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_backward_twice_and_inputs_untouched(ops, cell, save):
    case = Case(cell, D=2, save=save)
    p = problem(case)
    saved = forward(ops, case, p)
    before = [t.clone() for t in (*saved, p.x, p.h0, *p.weights, *p.cotangents)]
    first, second = backward(ops, case, p, saved), backward(ops, case, p, saved)
    for a, b in zip((*first[:3], *first[3]), (*second[:3], *second[3]), strict=True):
        assert torch.equal(a, b)
    for a, b in zip((*saved, p.x, p.h0, *p.weights, *p.cotangents), before, strict=True):
        assert torch.equal(a, b)


def test_no_output_aliases_another(ops):
    for case in (Case("lstm"), Case("gru"), Case("rnn_tanh"), Case("lstm", P=2, T=1)):
        p = problem(case)
        saved = forward(ops, case, p)
        x, h0, c0, weights = backward(ops, case, p, saved)
        tensors = [t for t in (*saved, x, h0, c0, *weights, p.x, p.h0, *p.weights) if t.numel()]
        memory = [t.untyped_storage().data_ptr() for t in tensors]
        assert len(set(memory)) == len(memory)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("absent", [{0}, {1}, {0, 1, 2}])
def test_absent_gradients_are_zero(ops, cell, absent):
    case = Case(cell, D=2)
    p = problem(case)
    p.cotangents = [torch.zeros_like(g) if i in absent else g for i, g in enumerate(p.cotangents)]
    y, _, _, gates, cells = forward(ops, case, p)
    given = [None if i in absent or i >= len(p.cotangents) else p.cotangents[i] for i in range(3)]
    saved = (y, gates, cells)
    got = ops.rnn_backward(*given, None, p.x, p.h0, p.c0, p.weights, *p.rows, *saved, cell, case.bias, ALL)
    want = backward(ops, case, p, (y, None, None, gates, cells))
    for a, b in zip((*got[:3], *got[3]), (*want[:3], *want[3]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_empty_batch(ops, cell, save, D):
    """B = 0 works, and weights get gradients of zero."""
    case = Case(cell, B=0, D=D, save=save)
    p = problem(case)
    ratio, what = worst(case, fused(ops, case, p), expected(case, p))
    assert ratio == 0, what


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [{}, {"sizes": PACKED}, {"lengths": LENGTHS, "reset": "some"}], ids=str)
@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize(("cell", "P"), [("lstm", 0), ("lstm", 3), ("gru", 0), ("rnn_tanh", 0)])
def test_saved_tensors_are_the_cpus(ops, cell, P, save, rows, dtype):
    """CPU and CUDA save the same: either's backward works on what the other's forward left."""
    case = Case(cell, D=2, P=P, save=save, dtype=dtype, **rows)
    p = problem(case)
    want = expected(case, p)
    cpu = torch.ops.fastrnn
    for first, second in ((ops, cpu), (cpu, ops)):
        saved = forward(first, case, p)
        x, h0, c0, weights = backward(second, case, p, saved)
        got = [*saved[: 2 + (cell == "lstm")], x, h0, *([c0] if cell == "lstm" else []), *weights]
        ratio, what = worst(case, got, want)
        assert ratio <= 1, what


def test_under_grad_mode(ops):
    """Inputs that require gradients, grad mode on: the torch functions inside must not try to record it."""
    case = Case("lstm", D=2, P=3, save="recompute")
    p = problem(case)
    asking = p.map(lambda t: t.clone().requires_grad_())
    assert torch.is_grad_enabled()
    for a, b in zip(fused(ops, case, asking), fused(ops, case, p), strict=True):
        assert torch.equal(a, b)
    assert torch.is_grad_enabled()


def test_for_tracers_and_compilers(ops):
    """The forms that programs and compilers call give what the raw operators give; a mode's options stay."""
    case = Case("lstm", D=2, P=2, bias=False)
    p = problem(case)
    given, rest = (p.x, p.h0, p.c0, p.weights, *p.rows), ("lstm", False)
    y, hn, cn, gates, cells = ops.rnn_forward(*given, *rest, 1)
    for mode in (0, 1, 2 + library.TIERS["stepwise"]):
        for a, b in zip(ops.rnn_layer(*given, *rest, False, mode)[:3], (y, hn, cn), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="mode: expected"):
        ops.rnn_layer(*given, *rest, False, 3)
    arguments = (*p.cotangents, None, *given, y, gates, cells, *rest, ALL)
    *first, weights = ops.rnn_backward(*arguments)
    found = ops.rnn_backward_unlisted(*arguments)
    for a, b in zip(found, [*first, *weights], strict=False):
        assert torch.equal(a, b)
    assert [t.numel() for t in found[3 + len(weights) :]] == [0] * 4

    case = Case("lstm", D=2, B=5, lengths=LENGTHS, reset="some", dtype=torch.float32)
    p = problem(case)
    given, rest = (p.x, p.h0, p.c0, p.weights, *p.rows), ("lstm", True)
    y, hn, cn, gates, cells = ops.rnn_forward(*given, *rest, 1)
    for keep in (True, False):
        found = ops.rnn_layer(*given, *rest, keep, 1)
        for a, b in zip(found, (y, hn, cn, cells if keep else cells.new_empty((0,))), strict=True):
            assert torch.equal(a, b)
    arguments = (*p.cotangents, None, *given, y, gates, cells, *rest, ALL)
    *first, weights = ops.rnn_backward(*arguments)
    for a, b in zip(ops.rnn_backward_unlisted(*arguments), [*first, *weights], strict=False):
        assert torch.equal(a, b)


def test_every_steps_cells(ops):
    """What return_all_states shows: the reference's c, zero beyond a row's length, without gates saved."""
    case = Case("lstm", D=2, B=5, lengths=LENGTHS, reset="some", dtype=torch.float32)
    p = problem(case)
    y, _, _, gates, cells = forward(ops, case, p, "recompute")
    x = p.x.masked_fill(p.padding.unsqueeze(2), 0)
    masks = {"lengths": p.lengths, "reset": p.reset}
    want = masked_layer(x, p.h0, p.c0, p.weights, cell="lstm", bias=True, **masks)[3]
    torch.testing.assert_close(cells, want, rtol=1e-5, atol=1e-6)
    assert not cells[:, p.padding.flatten()].any()
    assert not y[p.padding].any()
    assert gates.shape == (0,)


def test_bad_masks_are_one_error(ops):
    """The masks' checks are those of the CPU, before any kernel."""
    case = Case("gru", lengths=(1,), reset="all")
    p = problem(case)
    for name, value, message in (
        ("lengths", torch.tensor([1, 5, 2]), r"lengths: expected 0 to 4 \(the steps of x\), got 5 in row 1"),
        ("lengths", torch.tensor([1, 2]), r"lengths: expected shape \(3\), got \(2\)"),
        ("reset", torch.zeros(4, 2, dtype=torch.bool), r"reset: expected shape \(4, 3\), got \(4, 2\)"),
        ("reset", torch.zeros(4, 3), "reset: expected bool or uint8"),
    ):
        with pytest.raises(RuntimeError, match=message):
            forward(ops, case, replace(p, **{name: value}))


def test_bad_input_is_one_error(ops):
    """The CUDA ops make the checks that csrc/ops/check.h holds for every device."""
    case = Case("lstm")
    p = problem(case)
    p.weights[1] = p.weights[1][:, :-1]
    with pytest.raises(RuntimeError, match=r"w_hh\): expected shape \(28, 7\), got \(28, 6\)"):
        forward(ops, case, p)
    p = problem(case)
    y, hn, cn, gates, cells = forward(ops, case, p)
    with pytest.raises(RuntimeError, match="gates: expected"):
        backward(ops, case, p, (y, hn, cn, gates[:, 1:], cells))


@pytest.fixture(scope="module")
def found(request):
    return outcomes(request, FAULTS, "emu.layer_checks")


def test_no_fault_no_race(found):
    """No two warps touch the same memory in one launch, and the results are right."""
    assert found[None].get("worst", 2) <= 1, found[None]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(found, fault):
    """Deliberate faults in the kernels and the time loop: the cases would not let them pass."""
    assert_found(fault, found[fault])
