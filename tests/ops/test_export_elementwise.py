"""torch.export of MinGRU, MinLSTM, IndRNN and SLSTM with T and B open: rows, states and gradients."""

from __future__ import annotations

import pytest
import torch
from elementwise_cases import WithRows
from helpers import flat, randn
from tolerances import assert_close
from torch.export import Dim

import fastrnn

IN, H = 3, 6
KINDS = [
    (fastrnn.MinGRU, {}),
    (fastrnn.MinLSTM, {"log_space": True}),
    (fastrnn.IndRNN, {"nonlinearity": "tanh"}),
    (fastrnn.SLSTM, {}),
    (fastrnn.SLSTM, {"num_heads": 2}),
]
T, B = Dim.DYNAMIC, Dim.DYNAMIC


def _arguments(steps: int, rows: int, directions: int, states: int) -> tuple:
    lengths = torch.tensor([steps, 0, 1, steps - 1][:rows])
    own = (randn(directions, rows, H, dtype=torch.float64, seed=7 + i) for i in range(states))
    return randn(steps, rows, IN, dtype=torch.float64), lengths, randn(steps, rows, seed=5) > 0.5, *own


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_exported(cls, options):
    """The program, made at one size, has the layer's numbers at others, and the definition's first and second
    derivatives, as it may be trained. (T was fixed for an SLSTM, and with lengths for each of them.)"""
    torch.manual_seed(0)
    layer = cls(IN, H, bidirectional=True, dtype=torch.float64, **options)
    module, count = WithRows(layer), layer._states
    shapes = ({0: T, 1: B}, {0: B}, {0: T, 1: B}, ({1: B},) * count)
    program = torch.export.export(module, _arguments(5, 3, 2, count), dynamic_shapes=shapes).module()
    for size in ((9, 4), (2, 1)):
        x, *rest = _arguments(*size, 2, count)
        x.requires_grad_()
        found = []
        for run, weights in ((module, module.parameters()), (program, program.parameters())):
            results = flat(run(x, *rest))
            loss = sum((i + 1) * (r * r).sum() for i, r in enumerate(results))
            leaves = [x, *weights]
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            second = torch.autograd.grad(sum((g * g).sum() for g in first), leaves)
            plain = torch.autograd.grad(sum((r * r).sum() for r in flat(run(x, *rest))), leaves)
            found.append([*results, *first, *second, *plain])
        for want, got in zip(*found, strict=True):
            assert_close(got, want, torch.float64, gradient=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_of_an_slstm(dtype):
    """torch's own check of ``fastrnn::slstm``: schema, fake results, derivatives under a compiler."""
    hidden, rows = 4, 2
    inputs = [randn(3, rows, 4 * hidden, dtype=dtype), randn(4 * hidden, 2, dtype=dtype, seed=2)]
    inputs += [randn(rows, hidden, dtype=dtype, seed=3 + i) for i in range(4)]
    inputs = [t.requires_grad_(dtype is torch.float32) for t in inputs]
    lengths, reset = torch.tensor([3, 2]), torch.tensor([[0, 1], [0, 0], [1, 0]]).bool()
    for rows_ in ((None, None), (lengths, reset)):
        torch.library.opcheck(torch.ops.fastrnn.slstm.default, (*inputs, *rows_, True))
