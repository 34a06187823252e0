"""Variants of the recurrent cells (csrc/cells/policies) by the operators of the CPU."""

from __future__ import annotations

import pytest
import torch
from stage_cases import GATES, GRU, LSTM, OPTIONS, RNN, Case, cases, check, problem
from torch.library import opcheck

from fastrnn import _ops  # noqa: F401  (loads the operators)

ops = torch.ops.fastrnn
CPU_ISAS = ops.cpu_isas().split(",")


@pytest.fixture(params=CPU_ISAS)
def isa(request):
    before = ops.cpu_isa()
    ops.cpu_set_isa(request.param)
    yield request.param
    ops.cpu_set_isa(before)


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_variants(case, isa):
    """Outputs and every gradient of every option and of options together, whatever the rows."""
    check(ops, case, save=1)


@pytest.mark.parametrize(("cell", "options"), OPTIONS, ids=str)
def test_units_and_rows_are_split(cell, options):
    """Threads that share a row meet where its sums or a second product need all of it, whatever their number;
    and a sequence of more rows than a chunk adds its parts up."""
    before = torch.get_num_threads()
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            check(ops, Case(cell, options, T=4, B=3, I=20, H=150), save=1)
            plan = ops.cpu_last_plan()
            assert plan[3] > 1 or ops.cpu_threads() == 1, "the units were to be split"
        torch.set_num_threads(1)
        check(ops, Case(cell, options, T=150, B=17, I=5, H=40, rows="reset"), save=1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize(
    ("cell", "options"),
    [("lstm", ("peephole",)), ("gru", ()), ("gru", ("reset_before",)), ("rnn_tanh", ()), ("rnn_relu", ())],
    ids=str,
)
def test_heads_do_not_see_each_other(cell, options, bad, isa):
    """What is not finite stays in its head, wherever that begins in a register: states, and gradients."""
    case = Case(cell, options, B=3, H=15, heads=3)  # a head has 5 units
    p = problem(case)
    others = [*range(5), *range(10, 15)]
    rows = torch.arange(GATES[cell] * 15).view(-1, 15)[:, others].flatten()

    def run(h0, dy):
        rest = (None, None, None)
        found = ops.rnn_forward(p.x, h0, p.c0, p.weights, *rest, case.name, True, 1)
        saved = (found[0], *found[3:])
        call = (p.x, p.h0, p.c0, p.weights, *rest, *saved, case.name, True, 15)
        _, dh0, dc0, dw = ops.rnn_backward(dy, None, None, None, *call)
        states = [*found[:2], dh0] + ([found[2], dc0] if cell == "lstm" else [])
        return [s[..., others] for s in states], [w[rows] for w in dw[:4]]

    dy = torch.rand(5, 3, 15, dtype=torch.float64)
    clean, bad_h0, bad_dy = run(p.h0, dy), p.h0.clone(), dy.clone()
    bad_h0[0, 1, 7] = bad_dy[4, 1, 7] = bad
    for (states, weights), from_start in ((run(bad_h0, dy), True), (run(p.h0, bad_dy), False)):
        for got, want in zip(states, clean[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, msg=f"{from_start=}")
        for got, want in zip(weights, clean[1], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, msg=f"{from_start=}")


@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", LSTM[-1], D=2, H=20),
        Case("gru", GRU[4], rows="lengths"),
        Case("gru", GRU[5], rows="packed", B=5),
        Case("rnn_relu", RNN[2]),
        Case("lstm", (), heads=2, H=8),
    ],
    ids=str,
)
def test_nothing_saved_but_what_recomputes(case):
    """Backward without gates makes them again."""
    check(ops, case, save=2)


@pytest.mark.parametrize(("cell", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_types(cell, options, dtype, isa):
    """Half types compute in float32 and round what they keep: results stay within a few roundings of it."""
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 8e-2, torch.float16: 1e-2}[dtype]
    # A relu's gradient jumps where a rounding moves its argument over zero.
    case = Case(cell.replace("relu", "tanh") if dtype != torch.float32 else cell, options, D=2, H=20, T=4)
    check(ops, case, save=1, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("gru+peephole", "'gru' has no option 'peephole'"),
        ("lstm+reset_before", "'lstm' has no option 'reset_before'"),
        ("rnn_tanh+zoneout_c", "'rnn_tanh' has no option 'zoneout_c'"),
        ("lstm+wings", "expected options peephole"),
        ("lstm+peephole=1", "expected options peephole"),
        ("lstm+coupled+coupled", "each option once"),
        ("lstm+norm", "norm=eps"),
        ("lstm+norm=-1", "norm=eps"),
        ("lstm+norm=1e-5x", "norm=eps"),
        ("lstm+heads=0", "heads=n"),
        ("lstm+heads=2+heads=2", "each option once"),
        ("lstm+heads=4", "heads that divide hidden_size 9"),
        ("gru+norm=1e-5+reset_before", "do not go together"),
        ("ltsm+peephole", "expected 'lstm'"),
        ("lstm+", "expected options peephole"),
    ],
)
def test_wrong_options(cell, message):
    """One clear error that names the argument, before any kernel runs."""
    p = problem(Case(cell.partition("+")[0].replace("ltsm", "lstm"), ()))
    with pytest.raises(RuntimeError, match="^cell: .*" + message):
        ops.rnn_forward(p.x, p.h0, p.c0, p.weights, None, None, None, cell, True, 1)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (
            ("peephole",),
            lambda w: w[:-1],
            "weights: expected 4 tensors a direction.*and those of the variant",
        ),
        (("peephole",), lambda w: [*w[:-1], w[-1][:-1]], r"\[4\] \(peephole\): expected shape \(27\)"),
        (
            ("norm=1e-5",),
            lambda w: [*w[:-1], w[-1].float()],
            r"\[7\] \(norm_c_bias\): expected the dtype",
        ),
        (
            ("zoneout_h",),
            lambda w: [*w[:-1], w[-1][:3]],
            r"\[4\] \(keep_h\): expected shape \(5, 4, 9\)",
        ),
        (("zoneout_c",), lambda w: [*w[:-1], w[-1].float()], r"weights\[4\] \(keep_c\): expected the dtype"),
        (
            ("recurrent_mask",),
            lambda w: [*w[:-1], w[-1][0]],
            r"\[4\] \(recurrent_mask\): expected shape",
        ),
    ],
)
def test_wrong_tensors(options, change, message):
    """Kernels read what a variant's tensors are checked to hold, and no further."""
    case = Case("lstm", options)
    p = problem(case)
    with pytest.raises(RuntimeError, match=message):
        ops.rnn_forward(p.x, p.h0, p.c0, change([*p.weights, *p.masks]), None, None, None, case.name, True, 1)


def test_gradients_one_by_one_are_of_ten_weights():
    """A variant may have more: none is left out without a word."""
    case = Case("lstm", LSTM[-1], D=2)
    p = problem(case)
    w = [*p.weights, *p.masks]
    y, hn, cn, gates, cells = ops.rnn_forward(p.x, p.h0, p.c0, w, None, None, None, case.name, True, 1)
    call = (y, hn, cn, None, p.x, p.h0, p.c0, w, None, None, None, y, gates, cells, case.name, True, 15)
    with pytest.raises(RuntimeError, match=r"^weights: expected at most 10 tensors.*got 21"):
        ops.rnn_backward_unlisted(*call)
    *first, weights = ops.rnn_backward(*call)
    found = ops.rnn_backward_unlisted_variant(*call)
    assert len(found) == 3 + 23
    for a, b in zip(found, [*first, *weights], strict=False):
        assert torch.equal(a, b)
    assert all(t.shape == (0,) for t in found[3 + len(weights) :])
    opcheck(ops.rnn_backward_unlisted_variant.default, call, test_utils=("test_schema", "test_faketensor"))


def test_packed_weights_are_of_plain_cells():
    p = problem(Case("lstm", ("peephole",)))
    with pytest.raises(RuntimeError, match="cell: expected"):
        ops.rnn_pack(p.weights, "lstm+peephole", True)


@pytest.mark.parametrize("cell", list(GATES))
def test_a_mask_of_ones_changes_nothing(cell):
    """Variants whose values are those of the plain cell give its numbers: k = 0 keeps, ones mask nothing."""
    p = problem(Case(cell, (), D=2, H=20))
    plain = ops.rnn_forward(p.x, p.h0, p.c0, p.weights, None, None, None, cell, True, 0)
    more = [torch.zeros(5, 4, 40, dtype=torch.float64), torch.ones(2, 4, 20, dtype=torch.float64)]
    name = f"{cell}+zoneout_h+recurrent_mask"
    variant = ops.rnn_forward(p.x, p.h0, p.c0, [*p.weights, *more], None, None, None, name, True, 0)
    for a, b in zip(plain[:3], variant[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_no_rows():
    """A batch of none, and a sequence whose rows are all of length zero."""
    case = Case("lstm", LSTM[-1], B=0)
    p = problem(case)
    w = [*p.weights, *p.masks]
    y, *_ = ops.rnn_forward(p.x, p.h0, p.c0, w, None, None, None, case.name, True, 1)
    assert y.shape == (5, 0, 9)
    case = case._replace(B=4)
    p = problem(case)
    w = [*p.weights, *p.masks]
    lengths = torch.zeros(4, dtype=torch.int64)
    y, hn, cn, gates, cells = ops.rnn_forward(p.x, p.h0, p.c0, w, None, lengths, None, case.name, True, 1)
    assert not y.any()
    assert torch.equal(hn, p.h0)
    assert torch.equal(cn, p.c0)
    *_, grads = ops.rnn_backward(
        y, hn, cn, None, p.x, p.h0, p.c0, w, None, lengths, None, y, gates, cells, case.name, True, 15
    )
    assert all(not g.any() for g in grads)
