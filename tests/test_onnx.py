"""torch.onnx.export: the standard nodes, small graphs, and fastrnn's numbers in ONNX Runtime at other sizes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import flat, randn
from tolerances import assert_close
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

IN, H = 4, 6
#: Steps and rows: of the export, and of the calls after it.
TRACED, CALLED = (5, 3), ((9, 4), (1, 1))
RECURRENT = ("LSTM", "GRU", "RNN", "Scan", "Loop")


class Call(nn.Module):
    """A layer with the arguments of its call by name, as an export wants them in order."""

    def __init__(self, layer: nn.Module, names: tuple[str, ...], constant: dict) -> None:
        super().__init__()
        self.layer, self.names, self.constant = layer, names, constant

    def forward(self, x, *args):
        return self.layer(x, **dict(zip(self.names, args, strict=True)), **self.constant)


def _export(module: nn.Module, args: tuple, shapes: tuple, **options):
    torch.manual_seed(0)
    module.eval()
    return torch.onnx.export(
        module, args, dynamo=True, dynamic_shapes=shapes, verbose=False, **options
    )


def _operators(program) -> Counter:
    return Counter(node.op_type for node in program.model.graph)


def _check(program, module: nn.Module, args: tuple) -> None:
    """What ONNX Runtime gives is what the module gives."""
    expected = flat(module(*args))
    got = program(*args)
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype
        assert_close(a, b.detach(), b.dtype, what=f"result {i}")


# Arguments of a call at a size, and which of their dimensions are open. T steps, B rows.
T, B = Dim.DYNAMIC, Dim.DYNAMIC


def _lengths(steps: int, rows: int) -> Tensor:
    return torch.tensor([0, steps, 1, steps - 1][:rows])


def _state(states: int, features: int = H) -> tuple[Callable, dict]:
    return lambda steps, rows, dtype: randn(states, rows, features, dtype=dtype, seed=3), {1: B}


def _states(states: int, features: int = H) -> tuple[Callable, tuple]:
    h, c = _state(states, features)[0], _state(states)[0]
    return lambda *size: (h(*size), c(*size).cos()), ({1: B}, {1: B})


LENGTHS = lambda steps, rows, dtype: _lengths(steps, rows), {0: B}  # noqa: E731
MASK = lambda steps, rows, dtype: randn(steps, rows, seed=5) > 0.5, {0: T, 1: B}  # noqa: E731
MASK_FIRST = lambda steps, rows, dtype: randn(rows, steps, seed=5) > 0.5, {0: B, 1: T}  # noqa: E731
BIG = 100  # whose weights are larger than what the exporter's optimiser folds by itself

BOTH, F64 = {"bidirectional": True}, torch.float64
#: name, constructor's arguments, the call's, dtype, and the whole graph, or (where None) its recurrent nodes.
LAYERS = {
    "LSTM": ("LSTM", dict(num_layers=2, batch_first=True, hidden_size=BIG, **BOTH), {}, None,
             {"LSTM": 2, "Transpose": 4, "Reshape": 2, "Concat": 2}),
    "LSTM hx": ("LSTM", dict(num_layers=2), {"hx": _states(2)}, None,
                {"LSTM": 2, "Slice": 4, "Squeeze": 2, "Concat": 2}),
    "LSTM lengths": ("LSTM", BOTH, {"lengths": LENGTHS}, None,
                     {"LSTM": 1, "Cast": 1, "Transpose": 1, "Reshape": 1}),
    "GRU": ("GRU", dict(bias=False, hidden_size=BIG), {"hx": _state(1, BIG)}, None, {"GRU": 1, "Squeeze": 1}),
    "GRU lengths hx": ("GRU", dict(batch_first=True, **BOTH), {"lengths": LENGTHS, "hx": _state(2)}, None,
                       {"GRU": 1, "Cast": 1, "Transpose": 3, "Reshape": 2, "Equal": 1, "Where": 1}),
    "GRU states": ("GRU", dict(num_layers=2), {"lengths": LENGTHS, "return_all_states": True}, None,
                   {"GRU": 2, "Cast": 1, "Squeeze": 2, "Concat": 2, "Unsqueeze": 2}),
    "RNN": ("RNN", BOTH, {}, None, {"RNN": 1, "Transpose": 1, "Reshape": 1}),
    "RNN relu": ("RNN", dict(num_layers=2, nonlinearity="relu", **BOTH), {"hx": _state(4)}, None,
                 {"RNN": 2, "Slice": 2, "Transpose": 2, "Reshape": 2, "Concat": 1}),
    "GRU float16": ("GRU", BOTH, {}, torch.float16, {"GRU": 1, "Transpose": 1, "Reshape": 1}),
    "LSTM bfloat16": ("LSTM", {}, {}, torch.bfloat16, {"LSTM": 1, "Squeeze": 1, "Cast": 4}),
    "LSTM float64": ("LSTM", BOTH, {"lengths": LENGTHS, "hx": _states(2)}, F64, {"Scan": 2}),
    "GRU float64": ("GRU", dict(num_layers=2), {"hx": _state(2)}, F64, {"Scan": 2}),
    "RNN float64": ("RNN", dict(bias=False, **BOTH), {}, F64, {"Scan": 2}),
    "LSTM projected": ("LSTM", dict(proj_size=3, **BOTH), {"hx": _states(2, 3)}, None, {"Scan": 2}),
    "LSTM reset": ("LSTM", BOTH, {"reset": MASK, "lengths": LENGTHS, "hx": _states(2)}, None, {"Scan": 2}),
    "GRU reset": ("GRU", dict(batch_first=True, **BOTH), {"reset": MASK_FIRST}, None, {"Scan": 2}),
    "LSTM states": ("LSTM", BOTH, {"lengths": LENGTHS, "return_all_states": True}, None, {"Scan": 2}),
    "SRU": ("SRU", dict(layer_norm=True, rescale=True, **BOTH), {"mask_pad": MASK}, None, {"Scan": 4}),
    "SRU float64": ("SRU", dict(use_tanh=True), {"c0": _state(2)}, F64, {"Scan": 2}),
    "SRUpp": ("SRUpp", dict(proj_size=4, num_heads=2, **BOTH), {"mask_pad": MASK}, None, {"Scan": 4}),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_layers(case):
    """One node a layer and not one more than it takes, or one Scan a layer and direction, with open T and B;
    the weights, larger than the optimiser's limit too, lie ready in the file."""
    name, options, arguments, dtype, expected = LAYERS[case]
    torch.manual_seed(0)
    layer = getattr(fastrnn, name)(IN, **{"hidden_size": H, **options}, dtype=dtype)
    constant = {k: v for k, v in arguments.items() if isinstance(v, bool)}
    made = {k: v for k, v in arguments.items() if k not in constant}
    module = Call(layer, tuple(made), constant)
    first = options.get("batch_first")
    dtype = dtype or torch.float32

    def args(steps, rows):
        x = randn(*((rows, steps) if first else (steps, rows)), IN, dtype=dtype)
        return (x, *(make(steps, rows, dtype) for make, _ in made.values()))

    program = _export(module, args(*TRACED), ({0: T, 1: B}, tuple(open_ for _, open_ in made.values())))
    found = _operators(program)
    if "Scan" in expected:
        found = Counter({op: n for op, n in found.items() if op in RECURRENT})
    assert found == expected
    for size in CALLED:
        _check(program, module, args(*size))
