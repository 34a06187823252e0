"""The operators of linear_scan, MinGRU, MinLSTM, IndRNN and the sLSTM: schemas, wrong arguments, strides,
edited outputs, second derivatives. Their numbers are tested in tests/cpu/test_elementwise_kernels.py."""

from __future__ import annotations

import pytest
import torch
from elementwise_cases import CELLS, F64, Case, computed, inputs_of, rows, run
from torch.library import opcheck

from fastrnn._ops import elementwise, library


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
