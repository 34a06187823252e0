"""The kernels of linear_scan, MinGRU, MinLSTM, IndRNN and the sLSTM against their definitions in float64:
outputs, states and every gradient, on every instruction set.

Sizes lie around what the kernels are cut into: registers of 2 to 16 lanes, blocks of 64 units, tiles of 3 to
8 rows, rows whose state fits a cache, parts of a sequence that is shared out among threads.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from helpers import randn
from tolerances import TOLERANCES, error
from torch import Tensor
from torch.library import opcheck

import fastrnn
from fastrnn import reference
from fastrnn._cells import minimal
from fastrnn._ops import elementwise, library

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
CELLS = ("linear", "mingru", "mingru_log", "minlstm", "minlstm_log", "indrnn_tanh", "indrnn_relu")
NAMES = ("y", "last", "grad x", "grad b", "grad weight", "grad h0")
STATES = ("y", "h", "c", "n", "m", "grad gx", "grad weight", "grad h0", "grad c0", "grad n0", "grad m0")


class Case(NamedTuple):
    cell: str
    T: int = 7
    B: int = 3
    H: int = 20
    dtype: torch.dtype = F32
    reverse: bool = False
    start: bool = True
    lengths: bool = False
    reset: bool = False
    heads: int = 1


def rows(case: Case) -> tuple[Tensor | None, Tensor | None]:
    lengths = reset = None
    if case.lengths:
        lengths = torch.tensor([max(0, case.T - 2 * b) for b in range(case.B)])
    if case.reset:
        reset = torch.rand(case.T, case.B, generator=torch.Generator().manual_seed(3)) < 0.3
    return lengths, reset


def inputs_of(case: Case) -> list[Tensor | None]:
    T, B, H = case.T, case.B, case.H

    def draw(*shape, seed, scale=1.0):
        return (scale * randn(*shape, dtype=F64, seed=seed)).to(case.dtype)

    h0 = draw(B, H, seed=4) if case.start else None
    if case.cell == "slstm":
        states = [draw(B, H, seed=5 + i) for i in range(4)] if case.start else [None] * 4
        if case.start:  # c of what n is the normaliser of
            states[2] = states[2].abs() + 0.5
        return [draw(T, B, 4 * H, seed=1), draw(4 * H, H // case.heads, seed=2, scale=0.3), *states]
    if case.cell == "linear":  # in part so small that nothing is left of a state
        return [draw(T, B, H, seed=1, scale=0.7), draw(T, B, H, seed=2), None, h0]
    gates = {"mingru": 2, "minlstm": 3, "indrnn": 1}[case.cell.partition("_")[0]]
    x = draw(T, B, gates * H, seed=1, scale=2.0 if gates > 1 else 0.7)
    if gates > 1:
        return [x, None, None, h0]
    if case.cell == "indrnn_relu":  # whose derivative jumps at zero, where rounding would decide its side
        x = x + x.sign()
    return [x, None, draw(H, seed=3, scale=0.3), h0]


def definition(case: Case, x, b, weight, h0, *, lengths, reset) -> tuple[Tensor, Tensor]:
    """In torch's operations, without anything of the package's operators."""
    options = {"lengths": lengths, "reset": reset, "reverse": case.reverse}
    name, _, option = case.cell.partition("_")
    start = x.new_zeros(case.B, case.H) if h0 is None else h0
    if name == "indrnn":
        return reference.indrnn(x, weight, start, relu=option == "relu", **options)
    if name != "linear":
        x, b = getattr(minimal, name)(x, option == "log")
    y = reference.linear_scan(x, b, start, **options)
    last = []
    for row in range(case.B):
        steps = case.T if lengths is None else int(lengths[row])
        at = 0 if case.reverse else steps - 1
        last.append(y[at, row] if steps else start[row])
    return y, torch.stack(last)


def run(case: Case, compute, inputs) -> list[Tensor | None]:
    """Results and gradients."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    results = compute(*leaves)
    cotangents = [randn(*r.shape, dtype=F64, seed=11 + i).to(case.dtype) for i, r in enumerate(results)]
    given = [t for t in leaves if t is not None]
    grads = [c.to(r.dtype) for c, r in zip(cotangents, results, strict=True)]
    found = iter(torch.autograd.grad(results, given, grads))
    return [*results, *(None if t is None else next(found) for t in leaves)]


def computed(case: Case, inputs=None) -> list[Tensor | None]:
    """By the kernels."""
    lengths, reset = rows(case)
    options = {"lengths": lengths, "reset": reset, "reverse": case.reverse}

    def compute(*t):
        if case.cell == "slstm":
            y, last = elementwise.slstm(t[0], t[1], t[2:] if case.start else None, **options)
            return y, *last
        return elementwise.scan(case.cell, *t, **options)

    return run(case, compute, inputs or inputs_of(case))


def expected(case: Case, inputs=None) -> list[Tensor | None]:
    """By the definition in float64 of the same numbers."""
    lengths, reset = rows(case)

    def compute(*t):
        if case.cell == "slstm":
            states = tuple(t[0].new_zeros(case.B, case.H) if s is None else s for s in t[2:])
            more = {"lengths": lengths, "reset": reset, "reverse": case.reverse}
            y, last = reference.slstm(t[0], t[1], states, **more)
            return y, *last
        return definition(case, *t, lengths=lengths, reset=reset)

    return run(case, compute, [None if t is None else t.double() for t in inputs or inputs_of(case)])


def check(case: Case) -> None:
    got, want = computed(case), expected(case)
    for name, g, w in zip(STATES if case.cell == "slstm" else NAMES, got, want, strict=True):
        assert (g is None) == (w is None), name
        if g is None:
            continue
        assert g.dtype == case.dtype, name
        assert g.shape == w.shape, name
        limit = TOLERANCES[case.dtype][name.startswith("grad")]
        assert error(g, w) <= limit, f"{case}: {name} {error(g, w):.1e}"


# ---- values ---------------------------------------------------------------------------------------------


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


# ---- operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [*CELLS, "slstm"])
def test_opcheck(cell):
    """Schema, fake tensors and dynamic shapes, forward and backward."""
    case = Case(cell, lengths=True, reset=True)
    lengths, reset = rows(case)
    inputs = inputs_of(case)
    if cell == "slstm":
        opcheck(library.slstm_forward, (*inputs, lengths, reset, False, False))
        lengths = None  # beyond which nothing is saved
        forward = (*inputs, lengths, reset, True, True)
        opcheck(library.slstm_forward, forward)
        y, h, *_, pre, saved = library.slstm_forward(*forward)
        grads = torch.ones_like(y), None, torch.ones_like(h), None, None
        opcheck(library.slstm_backward, (*grads, *inputs, lengths, reset, pre, saved, True))
        return
    forward = (cell, *inputs, lengths, reset, False)
    opcheck(library.elementwise_forward, forward)
    y, last = library.elementwise_forward(*forward)
    for needs in (0, 1, 6, 15):
        arguments = (
            cell,
            torch.ones_like(y),
            torch.ones_like(last),
            *inputs,
            lengths,
            reset,
            y,
            False,
            needs,
        )
        opcheck(library.elementwise_backward, arguments)


X, ROW = torch.zeros(4, 3, 6), torch.zeros(3, 6)
GATES, WEIGHT = torch.zeros(4, 3, 24), torch.zeros(24, 3)


def forward(cell="mingru", x=X, b=None, weight=None, h0=None, lengths=None, cut=None):
    return library.elementwise_forward(cell, x, b, weight, h0, lengths, cut, False)


def sforward(gx=GATES, weight=WEIGHT, h0=None, lengths=None):
    return library.slstm_forward(gx, weight, h0, None, None, None, lengths, None, False, False)


WRONG = [
    (lambda: forward("lstm"), "cell: expected 'linear', 'mingru'"),
    (lambda: forward(x=X[0]), r"x: expected shape \(T, B, features\)"),
    (lambda: forward("minlstm", torch.zeros(4, 3, 7)), "x: expected a multiple of 3 features, got 7"),
    (lambda: forward("linear"), "b: expected a tensor with cell 'linear', got none"),
    (lambda: forward(b=X), "b: expected none with cell 'mingru', got one"),
    (lambda: forward("linear", b=X[:3]), r"b: expected shape \(4, 3, 6\), got \(3, 3, 6\)"),
    (lambda: forward("indrnn_tanh"), "weight: expected a tensor"),
    (lambda: forward(h0=ROW), r"h0: expected shape \(3, 3\), got \(3, 6\)"),
    (lambda: forward("linear", b=X.double()), "b: expected the dtype"),
    (lambda: forward(x=X.int()), "x: expected dtype"),
    (lambda: forward(lengths=torch.tensor([5, 1, 1])), "lengths: expected 0 to 4"),
    (lambda: forward(lengths=torch.tensor([1, 1])), "lengths: expected shape"),
    (lambda: forward(cut=torch.zeros(4, 3)), "cut: expected bool or uint8"),
    (lambda: sforward(torch.zeros(4, 3, 6)), r"gx: expected shape \(T, B, 4\*H\)"),
    (lambda: sforward(weight=torch.zeros(24, 4)), r"weight_hh: expected shape \(24, a divisor of 6\)"),
    (lambda: sforward(h0=torch.zeros(3, 5)), r"h0: expected shape \(3, 6\)"),
    (lambda: sforward(lengths=torch.tensor([9, 0, 0])), "lengths: expected 0 to 4 .the steps of gx"),
]


@pytest.mark.parametrize(("call", "text"), WRONG)
def test_wrong_arguments(call, text):
    """One error that names the argument, what was expected and what came."""
    with pytest.raises(RuntimeError, match=text):
        call()


@pytest.mark.parametrize("cell", ["linear", "minlstm", "indrnn_tanh", "slstm"])
def test_strides(cell):
    """Inputs of any strides, gradients that were broadcast, no rows at all."""
    case = Case(cell)
    inputs = inputs_of(case)
    want = computed(case, inputs)
    turned = [None if t is None else t.transpose(0, -1).contiguous().transpose(0, -1) for t in inputs]
    for a, b in zip(computed(case, turned), want, strict=True):
        assert a is b or torch.equal(a, b)
    leaf = inputs[0].clone().requires_grad_()
    others = inputs[1:]
    y = (
        elementwise.slstm(leaf, others[0], others[1:])
        if cell == "slstm"
        else elementwise.scan(cell, leaf, *others)
    )
    y[0].sum().backward()  # an expanded gradient
    assert torch.isfinite(leaf.grad).all()
    none = case._replace(B=0)
    for t in computed(none):
        assert t is None or not t.any()


@pytest.mark.parametrize("cell", ["mingru", "indrnn_relu", "slstm"])
def test_an_edited_output(cell):
    """The output is the caller's: what is added to it in place changes no gradient."""
    case = Case(cell, H=8)
    inputs = inputs_of(case)
    want = run(case, lambda *t: compute(cell, *t), inputs)

    def edited(*t):
        y, *last = compute(cell, *t)
        kept = y.clone()
        y.add_(1)
        return kept, *last

    for a, b in zip(run(case, edited, inputs), want, strict=True):
        assert a is b or torch.equal(a, b)


def compute(cell, *t):
    if cell == "slstm":
        y, last = elementwise.slstm(t[0], t[1], t[2:])
        return y, *last
    return elementwise.scan(cell, *t)


@pytest.mark.parametrize("cell", [*CELLS, "slstm"])
def test_second_derivatives(cell):
    """create_graph=True, and a batch of gradients at once."""
    case = Case(cell, T=4, B=2, H=4, heads=2, dtype=F64, lengths=True, reset=True)
    lengths, reset = rows(case)
    inputs = [t.requires_grad_() for t in inputs_of(case) if t is not None]
    absent = [t is None for t in inputs_of(case)]

    def call(*given):
        given = iter(given)
        t = [None if gone else next(given) for gone in absent]
        if cell == "slstm":
            y, last = elementwise.slstm(t[0], t[1], t[2:], lengths=lengths, reset=reset)
            return y, *last
        return elementwise.scan(cell, *t, lengths=lengths, reset=reset)

    torch.autograd.gradcheck(call, inputs, fast_mode=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
