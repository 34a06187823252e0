"""Variants of the cells in the stepwise tier: its kernels' own source and the host code around it, emulated.

The definition is that of stage_cases.py, which the CPU's kernels are held to as well.
"""

from __future__ import annotations

import pytest
import torch
from emu.faults import assert_found, outcomes
from emu.planted.stages import FAULTS
from stage_cases import GRU, LSTM, OPTIONS, RNN, Case, cases, check, packed, problem


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_variants(ops, case):
    """Outputs and every gradient of every option and of options together, whatever the rows."""
    ops.configure(len(str(case)))
    check(ops, case)


@pytest.mark.parametrize(("cell", "options"), OPTIONS, ids=str)
def test_rows_of_several_warps(ops, cell, options):
    """Sums go over warps, and a thread has more than one unit or a row more than one block."""
    ops.configure(len(cell))
    check(ops, Case(cell, options, T=3, B=2, H=150))
    check(ops, Case(cell, options, T=2, B=2, H=300))


@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", LSTM[-1], D=2, H=20),
        Case("lstm", LSTM[-1], H=9, P=5, D=2, rows="lengths"),
        Case("gru", GRU[4], rows="lengths"),
        Case("gru", GRU[5], rows="packed", B=5),
        Case("rnn_relu", RNN[2]),
        Case("lstm", (), heads=2, H=8),
    ],
    ids=str,
)
def test_nothing_saved_but_what_recomputes(ops, case):
    """Backward without gates runs forward again."""
    check(ops, case, save=2)


@pytest.mark.parametrize(("cell", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_types(ops, cell, options, dtype):
    """Half types compute in float32 and round what they keep: results stay within a few roundings of it."""
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 8e-2, torch.float16: 1e-2}[dtype]
    # A relu's gradient jumps where a rounding moves its argument over zero.
    case = Case(cell.replace("relu", "tanh") if dtype != torch.float32 else cell, options, D=2, H=20, T=4)
    check(ops, case, dtype=dtype, tolerance=tolerance)


MANY = [
    Case("lstm", LSTM[-1], H=10, heads=2, D=2, rows="lengths"),
    Case("lstm", LSTM[-1], H=9, P=5, D=2, rows="reset"),
    Case("gru", GRU[4], H=12, heads=3, D=2, rows="packed"),
    Case("gru", GRU[5], D=2, rows="lengths"),
    Case("rnn_tanh", RNN[2], rows="reset"),
]


def arguments(case: Case):
    p = problem(case)
    rows_of = [o for o in case.options if o.startswith("zoneout")]
    masks = [packed(m, p) if i < len(rows_of) else m for i, m in enumerate(p.masks)]
    lengths = p.lengths if case.rows == "lengths" else None
    rest = (p.batch_sizes, lengths, p.reset)
    return packed(p.x, p), p.h0, p.c0, [*p.weights, *masks], rest, p


def backward(ops, case: Case, arguments, saved, cotangents, needs=15):
    x, h0, c0, weights, rest, _ = arguments
    y, _, _, gates, cells = saved
    return ops.rnn_backward(
        *cotangents, x, h0, c0, weights, *rest, y, gates, cells, case.name, case.bias, needs
    )


@pytest.mark.parametrize("case", MANY, ids=str)
def test_only_what_is_needed(ops, case):
    """What is not asked for comes back empty, what is unchanged by it; every run has the same bits."""
    given = arguments(case)
    x, h0, c0, weights, rest, _ = given
    runs = [ops.rnn_forward(x, h0, c0, weights, *rest, case.name, case.bias, save) for save in (0, 1, 2, 1)]
    for run in runs[1:]:
        for a, b in zip(run[:3], runs[0][:3], strict=True):
            assert torch.equal(a, b)
    assert [t.shape for t in runs[0][3:]] == [(0,), (0,)]
    torch.manual_seed(1)
    lstm = case.cell == "lstm"
    cotangents = [
        torch.randn_like(runs[1][0]),
        torch.randn_like(h0),
        torch.randn_like(c0) if lstm else None,
        None,
    ]
    everything = backward(ops, case, given, runs[1], cotangents)
    again = backward(ops, case, given, runs[3], cotangents)
    for a, b in zip((*everything[:3], *everything[3]), (*again[:3], *again[3]), strict=True):
        assert torch.equal(a, b)
    for needs in (0, 1, 2, 4, 8, 9):
        some = backward(ops, case, given, runs[1], cotangents, needs)
        for bit, whole, got in zip((1, 2, 4), everything, some, strict=False):
            assert torch.equal(got, whole) if needs & bit else got.shape == (0,)
        assert len(some[3]) == (len(weights) if needs & 8 else 0)
        for got, whole in zip(some[3], everything[3], strict=False):
            assert torch.equal(got, whole)
    tensors = [t for t in (*runs[1], *everything[:3], *everything[3], x, h0, *weights) if t.numel()]
    memory = [t.untyped_storage().data_ptr() for t in tensors]
    assert len(set(memory)) == len(memory)
    # Gradients that are zero need not be there.
    zeros = [torch.zeros_like(cotangents[0]), *cotangents[1:]]
    without = backward(ops, case, given, runs[1], [None, *cotangents[1:]])
    for a, b in zip(
        (*without[:3], *without[3]),
        (lambda r: (*r[:3], *r[3]))(backward(ops, case, given, runs[1], zeros)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", [c for c in MANY if c.rows == "lengths"], ids=str)
def test_nothing_beyond_a_length_is_read(ops, case):
    """NaN there, in x, in the masks and in the outputs' gradients, reaches nothing."""
    clean = arguments(case)
    x, h0, c0, weights, rest, p = clean
    beyond = (torch.arange(case.T)[:, None] >= p.lengths)[..., None]
    rows_masks = sum(o.startswith("zoneout") for o in case.options)
    first = len(p.weights)
    dirty_weights = [
        w.masked_fill(beyond, torch.nan) if first <= i < first + rows_masks else w
        for i, w in enumerate(weights)
    ]
    dirty = (x.masked_fill(beyond, torch.nan), h0, c0, dirty_weights, rest, p)
    results = []
    for given in (clean, dirty):
        saved = ops.rnn_forward(*given[:4], *rest, case.name, case.bias, 1)
        torch.manual_seed(1)
        grad_y = torch.randn_like(saved[0]).masked_fill(beyond, torch.nan if given is dirty else 0)
        cotangents = [
            grad_y,
            torch.randn_like(h0),
            torch.randn_like(c0) if case.cell == "lstm" else None,
            None,
        ]
        gx, gh, gc, gw = backward(ops, case, given, saved, cotangents)
        results.append([*saved, gx, gh, gc, *gw])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", ["lstm+norm=1e-5", "gru+reset_before+recurrent_mask", "rnn_tanh+heads=3"])
def test_no_rows(ops, cell):
    """An empty batch: the weights' gradients are zero."""
    name, *options = cell.split("+")
    heads = 3 if "heads=3" in options else 1
    case = Case(name, tuple(o for o in options if "heads" not in o), B=1, heads=heads)
    p = problem(case)
    x, h0 = p.x[:, :0], p.h0[:, :0]
    c0 = None if p.c0 is None else p.c0[:, :0]
    weights = [*p.weights, *(m[:, :0] for m in p.masks)]
    y, _, _, gates, cells = ops.rnn_forward(x, h0, c0, weights, None, None, None, case.name, True, 1)
    assert y.shape == (case.T, 0, case.H)
    gw = ops.rnn_backward(
        *(None,) * 4, x, h0, c0, weights, None, None, None, y, gates, cells, case.name, True, 15
    )[3]
    assert len(gw) == len(weights)
    for got, weight in zip(gw, p.weights, strict=False):
        assert torch.equal(got, torch.zeros_like(weight))


def test_what_runs_is_a_step_at_a_time(ops):
    """No persistent tier takes a variant; one by name is an error that says why."""
    p = problem(Case("lstm", ("peephole",)))
    grid = 16 * 2
    call = (p.x.float(), p.h0.float(), p.c0.float(), [w.float() for w in p.weights], None, None, None)
    with pytest.raises(RuntimeError, match=r"tier 'grid' cannot run.*a variant: stepwise only"):
        ops.rnn_forward(*call, "lstm+peephole", True, grid)
    ops.cuda_clear_ran()
    ops.rnn_forward(*call, "lstm+peephole", True, 0)
    assert "stepwise" in ops.cuda_ran()


@pytest.fixture(scope="module")
def found(request):
    return outcomes(request, FAULTS, "emu.stages_fault_checks")


def test_no_fault_no_race(found):
    """The sums over a row are ordered, no two blocks write the same unit, and the results are right."""
    assert found[None].get("worst", 2) <= 1, found[None]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(found, fault):
    """Deliberate faults in the kernels and the time loops: the cases would not let them pass."""
    assert_found(fault, found[fault])
