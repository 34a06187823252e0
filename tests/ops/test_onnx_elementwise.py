"""torch.onnx.export of MinGRU, MinLSTM, IndRNN, SLSTM: a Scan a layer and direction, and in ONNX Runtime the
layer's numbers at other sizes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from elementwise_cases import WithRows
from helpers import randn
from tolerances import assert_close
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import fastrnn

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

IN, H = 4, 6
KINDS = [
    (fastrnn.MinGRU, {}),
    (fastrnn.MinGRU, {"log_space": True}),
    (fastrnn.MinLSTM, {}),
    (fastrnn.IndRNN, {}),
    (fastrnn.IndRNN, {"nonlinearity": "tanh"}),
    (fastrnn.SLSTM, {}),
    (fastrnn.SLSTM, {"num_heads": 2}),
]
T, B = Dim.DYNAMIC, Dim.DYNAMIC


def _export(module: nn.Module, args: tuple, shapes: tuple):
    return torch.onnx.export(module, args, dynamo=True, dynamic_shapes=shapes, verbose=False)


def _recurrent(program) -> dict[str, int]:
    found = Counter(node.op_type for node in program.model.graph)
    return {k: found[k] for k in ("LSTM", "GRU", "RNN", "Scan", "Loop") if k in found}


def _check(program, module: nn.Module, args: tuple) -> None:
    want, got = tree_leaves(module(*args)), program(*args)
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == b.dtype
        assert_close(a, b.detach(), b.dtype, what=f"result {i}")


def build(cls, options, **more):
    torch.manual_seed(0)
    return cls(IN, H, **options, **more).eval()


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_layers(cls, options):
    """Both directions of two layers, T and B open."""
    layer = build(cls, options, num_layers=2, bidirectional=True, batch_first=True)
    program = _export(layer, (randn(3, 5, IN),), ({0: B, 1: T},))
    assert _recurrent(program) == {"Scan": 4}
    for rows, steps in ((3, 5), (4, 9), (1, 2), (2, 1)):
        _check(program, layer, (randn(rows, steps, IN),))


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_rows(cls, options):
    """Lengths, rows without a step among them, resets and states, in both directions."""
    layer = build(cls, options, bidirectional=True)
    module, count = WithRows(layer).eval(), layer._states

    def args(steps, rows):
        lengths = torch.tensor([steps, 0, 1, steps - 1][:rows])
        # Above 0, as a normaliser is: h is a quotient by it.
        states = (randn(2, rows, H, seed=7 + i).abs() + 0.5 for i in range(count))
        return (randn(steps, rows, IN), lengths, randn(steps, rows, seed=5) > 0.5, *states)

    shapes = ({0: T, 1: B}, {0: B}, {0: T, 1: B}, ({1: B},) * count)
    program = _export(module, args(5, 3), shapes)
    assert _recurrent(program) == {"Scan": 2}
    for size in ((5, 3), (9, 4), (1, 2)):
        _check(program, module, args(*size))


@pytest.mark.parametrize(("cls", "options"), KINDS[1:])
def test_other_types(cls, options):
    """float64, and float16 where ONNX Runtime computes the product of the input in it."""
    dtype = torch.float16 if cls is fastrnn.IndRNN else torch.float64
    layer = build(cls, options, dtype=dtype)
    program = _export(layer, (randn(5, 3, IN, dtype=dtype),), ({0: T, 1: B},))
    _check(program, layer, (randn(7, 2, IN, dtype=dtype),))


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_a_single_step(cls, options):
    """A program of one step is that step, without a loop."""
    layer = build(cls, options)
    program = _export(layer, (randn(1, 3, IN),), ({1: B},))
    assert not _recurrent(program)
    _check(program, layer, (randn(1, 5, IN),))
