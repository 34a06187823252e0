"""Calls of a layer's operators past the dispatcher and by it (csrc/python_layer.cpp): their arguments, and
how their results compare."""

from __future__ import annotations

import torch

import fastrnn
from fastrnn._ops import library

_direct = library.direct()
FORWARD, BACKWARD = _direct.forward, _direct.backward
CELLS = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
# Places of a backward pass's arguments.
GRAD_Y, GRAD_HN, GRAD_CN, GRAD_CELLS, X, H0, C0, WEIGHTS, BATCH_SIZES, LENGTHS, RESET = range(11)
Y, GATES, CELLS_SAVED, CELL, BIAS, NEEDS = range(11, 17)


LAYERS = [
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"save": "recompute"}),
    (fastrnn.LSTM, {"bidirectional": True}),
    (fastrnn.GRU, {}),
    (fastrnn.RNN, {}),
]


def operator_arguments(cell: str, dtype=torch.float32, directions=1, bias=True, steps=3, rows=2) -> list:
    gates, hidden, inputs = {"lstm": 4, "gru": 3}.get(cell, 1), 5, 3
    of_gates = gates * hidden
    sizes = [(of_gates, inputs), (of_gates, hidden), (of_gates,), (of_gates,)][: 4 if bias else 2]
    weights = [torch.randn(size, dtype=dtype) for size in sizes * directions]
    state = directions, rows, hidden
    x, h, c = (torch.randn(*size, dtype=dtype) for size in [(steps, rows, inputs), state, state])
    return [x, h, c if cell == "lstm" else None, weights, None, None, None, cell, bias, 0]


def backward_arguments(
    cell: str, dtype=torch.float32, directions=1, bias=True, steps=3, rows=2, save=1
) -> list:
    """Of a pass after the operator's own forward, with gradients of all that it gives."""
    forward = operator_arguments(cell, dtype, directions, bias, steps, rows)
    y, h, c, *saved = library.forward(*forward[:-1], save)
    grads = [torch.randn_like(t) for t in (y, h, c)]
    if cell != "lstm":
        grads[2] = None
    saved = [None if t.dim() == 1 else t for t in saved]  # as autograd saves them
    return [*grads, None, *forward[:7], y, *saved, cell, bias, 15]


def operator_backward(*arguments):
    """The operator, which takes tensors for what was saved."""
    if len(arguments) == 17:
        saved = [torch.empty(0) if t is None else t for t in arguments[GATES:CELL]]
        arguments = *arguments[:GATES], *saved, *arguments[CELL:]
    return library.backward(*arguments)


def found_by(way, arguments: list):
    """Its results, or the first line of its error."""
    try:
        return way(*arguments)
    except Exception as error:  # whatever it is
        return f"{type(error).__name__}: {error}".split("\n")[0]


def assert_equal(found, expected) -> None:
    """The same tensors, to the bit; None for an empty one."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, (list, tuple)):
            assert_equal(ours, theirs)
        elif ours is None:
            assert theirs.numel() == 0
        else:
            assert torch.equal(ours, theirs)
            assert (ours.stride(), ours.dtype) == (theirs.stride(), theirs.dtype)
