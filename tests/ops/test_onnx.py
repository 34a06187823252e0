"""torch.onnx.export: standard nodes, small graphs, and in ONNX Runtime fastrnn's numbers at other sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from helpers import randn
from selection import some
from tolerances import assert_close
from torch import nn
from torch.export import Dim
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

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
    return torch.onnx.export(module, args, dynamo=True, dynamic_shapes=shapes, verbose=False, **options)


def _operators(program) -> Counter:
    return Counter(node.op_type for node in program.model.graph)


def _check(program, module: nn.Module, args: tuple) -> None:
    """What ONNX Runtime gives is what the module gives."""
    expected = tree_leaves(module(*args))
    got = program(*args)
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype
        assert_close(a, b.detach(), b.dtype, what=f"result {i}")


# An argument of a call: a function of steps, rows and dtype, and which of its dimensions are open.
T, B = Dim.DYNAMIC, Dim.DYNAMIC


def _lengths(steps, rows, dtype):
    return torch.tensor([0, steps, 1, steps - 1][:rows])


def _mask(steps, rows, dtype):
    return randn(steps, rows, seed=5) > 0.5


def _state(states: int, features: int = H) -> tuple[Callable, dict]:
    return lambda steps, rows, dtype: randn(states, rows, features, dtype=dtype, seed=3), {1: B}


def _states(states: int, features: int = H) -> tuple[Callable, tuple]:
    h, c = _state(states, features)[0], _state(states)[0]
    return lambda *size: (h(*size), c(*size).cos()), ({1: B}, {1: B})


LENGTHS, MASK = (_lengths, {0: B}), (_mask, {0: T, 1: B})
BIG = 100  # whose weights are larger than what the exporter's optimiser folds by itself

BOTH, F64 = {"bidirectional": True}, torch.float64
#: name, constructor's arguments, the call's, dtype, and the whole graph; of one with Scan, these.
LAYERS = {
    "LSTM": ("LSTM", {"num_layers": 2, "batch_first": True, "hidden_size": BIG, **BOTH}, {}, None,
             {"LSTM": 2, "Transpose": 4, "Reshape": 2, "Concat": 2}),
    "LSTM hx": ("LSTM", {"num_layers": 2}, {"hx": _states(2)}, None,
                {"LSTM": 2, "Slice": 4, "Squeeze": 2, "Concat": 2}),
    "LSTM lengths": ("LSTM", BOTH, {"lengths": LENGTHS}, None,
                     {"LSTM": 1, "Cast": 1, "Transpose": 1, "Reshape": 1}),
    "GRU": ("GRU", {"bias": False, "hidden_size": BIG}, {"hx": _state(1, BIG)}, None,
            {"GRU": 1, "Squeeze": 1}),
    "GRU lengths hx": ("GRU", {"batch_first": True, **BOTH}, {"lengths": LENGTHS, "hx": _state(2)}, None,
                       {"GRU": 1, "Cast": 1, "Transpose": 3, "Reshape": 2, "Equal": 1, "Where": 1}),
    "GRU states": ("GRU", {"num_layers": 2}, {"lengths": LENGTHS, "return_all_states": True}, None,
                   {"GRU": 2, "Cast": 1, "Squeeze": 2, "Concat": 2, "Unsqueeze": 2}),
    "RNN": ("RNN", BOTH, {}, None, {"RNN": 1, "Transpose": 1, "Reshape": 1}),
    "RNN relu": ("RNN", {"num_layers": 2, "nonlinearity": "relu", **BOTH}, {"hx": _state(4)}, None,
                 {"RNN": 2, "Slice": 2, "Transpose": 2, "Reshape": 2, "Concat": 1}),
    "GRU float16": ("GRU", BOTH, {}, torch.float16, {"GRU": 1, "Transpose": 1, "Reshape": 1}),
    "LSTM bfloat16": ("LSTM", {}, {}, torch.bfloat16, {"LSTM": 1, "Squeeze": 1, "Cast": 4}),
    "LSTM float64": ("LSTM", BOTH, {"lengths": LENGTHS, "hx": _states(2)}, F64, {"Scan": 2}),
    "LSTM projected": ("LSTM", {"proj_size": 3, "bias": False, **BOTH}, {"hx": _states(2, 3)}, None,
                       {"Scan": 2}),
    "LSTM reset": ("LSTM", BOTH, {"reset": MASK, "lengths": LENGTHS, "hx": _states(2)}, None, {"Scan": 2}),
    "LSTM states": ("LSTM", BOTH, {"lengths": LENGTHS, "return_all_states": True}, None, {"Scan": 2}),
    "SRU": ("SRU", {"layer_norm": True, "rescale": True, **BOTH}, {"mask_pad": MASK}, None, {"Scan": 4}),
    "SRU float64": ("SRU", {"num_layers": 1, "use_tanh": True}, {"c0": _state(1)}, F64, {"Scan": 1}),
    "SRU rows": ("SRU", BOTH, {"reset": MASK, "lengths": LENGTHS, "return_all_states": True}, None,
                 {"Scan": 4}),
    "SRUpp": ("SRUpp", {"proj_size": 4, "num_layers": 1, "num_heads": 2}, {"mask_pad": MASK}, None,
              {"Scan": 1}),
}  # fmt: skip


#: What the others show too: an unrolled graph for its second dtype, nodes that a longer case has as well.
_SHOWN_BY_OTHERS = (
    "LSTM hx", "LSTM lengths", "GRU", "GRU states", "RNN", "GRU float16", "LSTM float64", "LSTM states",
    "SRU float64",
)  # fmt: skip


@pytest.mark.parametrize("case", some(LAYERS, lambda name: name not in _SHOWN_BY_OTHERS))
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

    shapes = tuple(open_ for _, open_ in made.values())
    program = _export(module, args(*TRACED), ({0: T, 1: B}, *([shapes] if shapes else [])))
    found = _operators(program)
    if "Scan" in expected:
        found = Counter({op: n for op, n in found.items() if op in RECURRENT})
    assert found == expected
    for size in CALLED:
        _check(program, module, args(*size))


#: The arithmetic of a cell, and how many nodes besides move its numbers about.
CELLS = {
    "LSTMCell": ({"MatMul": 1, "Gemm": 1, "Sigmoid": 3, "Tanh": 2, "Mul": 3, "Add": 3}, 11),
    "GRUCell": ({"MatMul": 1, "Gemm": 1, "Sigmoid": 2, "Tanh": 1, "Mul": 3, "Sub": 1, "Add": 5}, 8),
    "RNNCell": ({"MatMul": 1, "Gemm": 1, "Tanh": 1, "Add": 2}, 6),
    "SRUCell": ({"MatMul": 1, "Sigmoid": 1, "Mul": 3, "Sub": 2, "Add": 4}, 23),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    """A cell is its step's operations, with an open B, and no recurrent node of a single step."""
    torch.manual_seed(0)
    module = getattr(fastrnn, name)(IN, H)

    def args(rows):
        x, h = randn(rows, IN), randn(rows, H, seed=2)
        return x, ((h, h.cos()) if name == "LSTMCell" else h)

    program = _export(module, args(3), ({0: B}, ({0: B}, {0: B}) if name == "LSTMCell" else {0: B}))
    found, (arithmetic, moves) = _operators(program), CELLS[name]
    assert {op: found[op] for op in arithmetic} == arithmetic
    assert not any(op in found for op in RECURRENT)
    assert found.total() - sum(arithmetic.values()) <= moves
    for rows in (5, 1):
        _check(program, module, args(rows))


def test_unbatched_without_the_optimiser():
    """A single sequence; and optimize=False, which leaves the nodes that arrange weights: same numbers."""
    module = fastrnn.GRU(IN, H)
    program = _export(module, (randn(5, IN),), ({0: T},), optimize=False)
    assert _operators(program)["GRU"] == 1
    for steps in (1, 8):
        _check(program, module, (randn(steps, IN),))


def test_exported_program():
    """What torch.export gave is exported as the model itself would be."""
    module = fastrnn.LSTM(IN, H).eval()
    shapes = ({0: T, 1: B},)
    program = torch.export.export(module, (randn(*TRACED, IN),), dynamic_shapes=shapes)
    program = torch.onnx.export(program, dynamo=True, verbose=False)
    assert _operators(program) == {"LSTM": 1, "Squeeze": 1}
    for size in CALLED:
        _check(program, module, (randn(*size, IN),))


def test_computed_weights():
    """A weight that the model computes is no constant, and is arranged where the graph runs."""
    module = fastrnn.GRU(BIG, BIG)
    parametrizations.weight_norm(module, "weight_hh_l0")
    program = _export(module, (randn(5, 3, BIG),), ({0: T, 1: B},))
    assert _operators(program)["GRU"] == 1
    _check(program, module, (randn(7, 2, BIG),))


def test_beside_torch():
    """torch's own layer in the same model becomes what it becomes alone, and both give their numbers."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theirs, self.ours = nn.GRU(IN, H), fastrnn.GRU(H, H)

        def forward(self, x):
            return self.ours(self.theirs(x)[0])

    torch.manual_seed(0)
    module, x = Both(), randn(*TRACED, IN)
    program = _export(module, (x,), None)
    alone = _operators(_export(module.theirs, (x,), None))
    assert _operators(program) == alone + Counter({"GRU": 1, "Squeeze": 1})
    _check(program, module, (x,))


def test_packed_sequences():
    """ONNX has no packed sequences, and the error says what to pass."""

    class Packed(nn.Module):
        def __init__(self, layer) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, data, batch_sizes):
            return self.layer(nn.utils.rnn.PackedSequence(data, batch_sizes))[1]

    packed = pack_padded_sequence(randn(5, 3, IN), [5, 4, 2])
    for layer, instead in ((fastrnn.LSTM(IN, H), "lengths="), (fastrnn.SRU(IN, H), "mask_pad")):
        with pytest.raises(
            Exception, match=f"ONNX has no packed sequences: pass the padded batch and {instead}"
        ):
            _export(Packed(layer), (packed.data, packed.batch_sizes), None)


def test_no_decomposition_outside_of_an_export():
    """torch.compile refuses, where CI is set, operators with a decomposition that it does not use."""
    operators = [
        torch.ops.fastrnn.rnn_forward,
        torch.ops.fastrnn.rnn_layer,
        torch.ops.fastrnn.sru_forward,
    ]
    known = torch._decomp.get_decompositions([*operators, *(op.default for op in operators)])
    assert known == {}
    assert operators[0].default not in torch._decomp.decomposition_table
