"""The operators that tracers and compilers take in the raw ones' place: whole layers with a derivative, and
backward passes without a list among their results."""

from __future__ import annotations

import layer_cases
import pytest
import sru_cases
import torch
from functorch.compile import make_boxed_func
from helpers import randn
from layer_cases import ALL, LENGTHS, PACKED, Case, problem
from tolerances import assert_close
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import config as inductor
from torch.library import opcheck

import fastrnn
from fastrnn._ops import library

F32, F64 = torch.float32, torch.float64
CASES = [
    Case("lstm", dtype=F64),
    Case("lstm", D=2, P=3, bias=False, dtype=F64),
    Case("gru", D=2, dtype=F64, save="recompute"),
    Case("rnn_relu", sizes=PACKED, dtype=F64),
]
#: Every number of weights: 2 to 5 in one direction, and twice that.
COUNTS = [
    Case(cell, D=D, P=P, bias=bias, dtype=F32)
    for D in (1, 2)
    for cell, P in (("lstm", 0), ("lstm", 3), ("gru", 0))
    for bias in (True, False)
]
MASKED = Case("lstm", D=2, B=5, lengths=LENGTHS, reset="some", dtype=F64)


def _arguments(case: Case, p) -> tuple:
    saves = layer_cases.SAVES[case.save]
    return p.x, p.h0, p.c0, p.weights, *p.rows, case.cell, case.bias, False, saves


def _leaves(p) -> list:
    tensors = [t for t in (p.x, p.h0, p.c0, *p.weights) if t is not None]
    return [t.requires_grad_() for t in tensors]


def _raw(case: Case, p) -> tuple:
    """Output, states and gradients by the raw operators."""
    y, hn, cn, gates, cells = layer_cases.forward(torch.ops.fastrnn, case, p)
    return y, hn, cn, gates, cells


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case):
    """Results and gradients are the raw operators', with what the mode says saved; so are second derivatives;
    opcheck finds nothing, with gradients and without."""
    p = problem(case)
    arguments = _arguments(case, p)
    raw = _raw(case, p)
    for a, b in zip(library.layer(*arguments)[:3], raw[:3], strict=True):
        assert torch.equal(a, b)
    opcheck(library.layer, arguments)
    leaves = _leaves(p)
    outputs = [t for t in library.layer(*arguments) if t.numel()]
    grads = torch.autograd.grad(outputs, leaves, list(p.cotangents)[: len(outputs)])
    x, h0, c0, weights = library.backward(
        *(*p.cotangents, None)[:3],
        None,
        *(t.detach() if isinstance(t, torch.Tensor) else t for t in arguments[:3]),
        [w.detach() for w in p.weights],
        *p.rows,
        raw[0],
        *raw[3:],
        case.cell,
        case.bias,
        ALL,
    )
    want = [x, h0, *([] if p.c0 is None else [c0]), *weights]
    for a, b in zip(grads, want, strict=True):
        assert torch.equal(a, b)
    opcheck(library.layer, arguments)
    if "relu" not in case.cell:
        assert torch.autograd.gradgradcheck(
            lambda *_: tuple(t for t in library.layer(*arguments) if t.numel()), leaves, fast_mode=True
        )


@pytest.mark.parametrize("keep_cells", [False, True])
def test_layer_with_rows(keep_cells):
    """The same with lengths and resets, and with every step's cell state as a result."""
    p = problem(MASKED)
    arguments = (p.x, p.h0, p.c0, p.weights, *p.rows, "lstm", True, keep_cells, 1)
    leaves = _leaves(p)
    opcheck(library.layer, arguments)
    found = library.layer(*arguments)
    assert (found[3].numel() > 0) == keep_cells
    with torch.no_grad():
        kept = library.layer(*arguments)
    for a, b in zip(found, kept, strict=True):
        assert torch.equal(a, b)

    def run(*_):
        return tuple(t for t in library.layer(*arguments) if t.numel())

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_scan():
    """SRU's recurrence; a drop_mask is a constant here too."""
    case = sru_cases.Case(D=2, dtype=F64)
    p = sru_cases.problem(case)
    leaves = [t.requires_grad_() for t in p.arguments if t is not None and t.is_floating_point()][:5]
    options = list(case.options.values())
    arguments = [*p.arguments, *options, True]
    opcheck(library.sru_scan, arguments)
    assert torch.autograd.gradcheck(lambda *_: library.sru_scan(*arguments), leaves, fast_mode=True)
    mask = torch.ones_like(p.arguments[4]).requires_grad_()
    with pytest.raises(RuntimeError, match="drop_mask: expected a constant"):
        library.sru_scan(*p.arguments[:7], mask, *p.arguments[8:], *options, False)


def test_modes():
    """A mode from a GPU is no error on the CPU, where its options mean nothing; one that saves what there is
    not is."""
    p = problem(CASES[0])
    *arguments, mode = _arguments(CASES[0], p)
    options = library.TIERS["grid"] + library.TF32
    for a, b in zip(library.layer(*arguments, mode + options), library.layer(*arguments, mode), strict=True):
        assert torch.equal(a, b)
    _leaves(p)
    library.layer(*arguments, mode + options)[0].sum().backward()
    for wrong in (3, -1):
        with pytest.raises(RuntimeError, match="mode: expected what to save"), torch.no_grad():
            library.layer(*arguments, wrong)


@pytest.mark.parametrize("case", COUNTS, ids=str)
def test_unlisted(case):
    """The gradients of the weights one by one are those in the list, and empty where there is no weight."""
    p = problem(case)
    *_, gates, cells = raw = _raw(case, p)
    inputs = (p.x, p.h0, p.c0, p.weights, *p.rows)
    arguments = (*(*p.cotangents, None)[:3], None, *inputs, raw[0], gates, cells, case.cell, case.bias, ALL)
    *first, weights = library.backward(*arguments)
    found = library.backward_unlisted(*arguments)
    assert len(found) == 13
    for a, b in zip(found, [*first, *weights], strict=False):
        assert torch.equal(a, b)
    assert all(t.shape == (0,) for t in found[3 + len(weights) :])
    opcheck(library.backward_unlisted, arguments, test_utils=("test_schema", "test_faketensor"))


class _Model(nn.Module):
    """Both kinds of backward pass, and SRU's. options: of the LSTM, which may then have 20 weights."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.plain = fastrnn.GRU(4, 6, bias=False)
        self.masked = fastrnn.LSTM(6, 5, bidirectional=True, **options)
        self.sru = fastrnn.SRU(10, 4, num_layers=1)

    def forward(self, x, lengths):
        return self.sru(self.masked(self.plain(x)[0], lengths=lengths)[0])[0].sin()


def _same_gradients(model, compiled) -> None:
    x, lengths = randn(5, 3, 4), torch.tensor([5, 0, 2])
    want = torch.autograd.grad(model(x, lengths).sum(), list(model.parameters()))
    for a, b in zip(
        torch.autograd.grad(compiled(x, lengths).sum(), list(model.parameters())), want, strict=True
    ):
        assert_close(a, b, F32)


OPTIONS = [{}, {"norm": "layer", "peephole": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "variant"])
def test_graphs_have_no_lists(options):
    """No operator in a compiler's forward or backward graph returns a list, which some of them refuse."""
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    model = _Model(**options)
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    _same_gradients(model, torch.compile(model, fullgraph=True, backend=backend))
    called = [
        n.target for g in graphs for n in g.graph.nodes if getattr(n.target, "namespace", "") == "fastrnn"
    ]
    assert len(called) == 6
    assert not any("List" in str(r.type) for op in called for r in op._schema.returns)


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "variant"])
def test_cpp_wrapper(options):
    """Inductor's C++ wrapper trains, which takes operators that return tensors only."""
    torch._dynamo.reset()
    model = _Model(**options)
    _same_gradients(model, torch.compile(model, fullgraph=True, options={"cpp_wrapper": True}))


@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
def test_freezing(mode):
    """Inductor with the weights frozen into the graph, at both ends of its effort."""
    torch._dynamo.reset()
    model = _Model().eval()
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    x, lengths = randn(5, 3, 4), torch.tensor([5, 0, 2])
    with torch.no_grad(), inductor.patch(freezing=True):
        assert_close(compiled(x, lengths), model(x, lengths), F32)
