"""Tensors whose elements lie further apart than 32 bits can say."""

from __future__ import annotations

import pytest
import torch
from layer_cases import Case, expected, problem, worst
from torch import Tensor

from fastrnn._ops.autograd import layer

# Elements between two neighbours: 8.6 GB of float32, of which a few pages are touched.
FAR = 2**31 + 2**20


@pytest.fixture(scope="module")
def wide():
    """A buffer that takes no memory until it is written to."""
    try:
        return torch.empty(FAR + 64, dtype=torch.float32)
    except RuntimeError as error:
        pytest.skip(f"this machine promises no memory that it may not have: {error}")


def _placed(buffer: Tensor, values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The same values with these strides, in the buffer."""
    return buffer.as_strided(values.shape, strides).copy_(values)


def _check(case: Case, x: Tensor, grad_y: Tensor) -> None:
    p = problem(case)
    inputs = [x, *(t for t in (p.h0, p.c0) if t is not None), *p.weights]
    leaves = [t.detach().requires_grad_() for t in inputs]
    h0, *weights = leaves[1:]
    c0 = weights.pop(0) if case.cell == "lstm" else None
    results = layer(leaves[0], h0, c0, weights, cell=case.cell, bias=case.bias, batch_sizes=p.batch_sizes)
    outputs = [t for t in results if t is not None]
    gradients = torch.autograd.grad(outputs, leaves, [grad_y, *p.cotangents[1:]])
    ratio, what = worst(case, [*(t.detach() for t in outputs), *gradients], expected(case, p))
    assert ratio <= 1, what


APART = {
    "steps": (FAR, 8, 1),
    "rows": (8, FAR, 1),
    "steps and rows": (FAR // 2, FAR // 2 - 32, 1),
    "features": (8, 16, FAR // 4),
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("apart", APART)
def test_padded(wide, cell, apart):
    """In the input, then in the gradient of the output."""
    case = Case(cell, T=2, B=2, IN=4, H=4, dtype=torch.float32)
    p = problem(case)
    _check(case, _placed(wide, p.x, APART[apart]), p.cotangents[0])
    _check(case, p.x, _placed(wide, p.cotangents[0], APART[apart]))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("strides", [(FAR, 1), (1, FAR // 4)])
def test_packed(wide, strides):
    case = Case("gru", IN=4, H=4, dtype=torch.float32, sizes=(1, 1))
    p = problem(case)
    _check(case, _placed(wide, p.x, strides), p.cotangents[0])
    _check(case, p.x, _placed(wide, p.cotangents[0], strides))
