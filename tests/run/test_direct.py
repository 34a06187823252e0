"""The operators of a recurrent layer without the dispatcher (csrc/python_layer.cpp): the same bits, and the
operators themselves for whatever is out of the ordinary."""

from __future__ import annotations

import contextlib
import json
import threading
from itertools import product

import pytest
import torch
from helpers import HANGS_S
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from fastrnn._ops import autograd, library

_direct = library.direct()
FORWARD, BACKWARD = _direct.forward, _direct.backward
CELLS = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
# Places of a backward pass's arguments.
GRAD_Y, GRAD_HN, GRAD_CN, GRAD_CELLS, X, H0, C0, WEIGHTS, BATCH_SIZES, LENGTHS, RESET = range(11)
Y, GATES, CELLS_SAVED, CELL, BIAS, NEEDS = range(11, 17)


def operator_arguments(cell: str, dtype=torch.float32, directions=1, bias=True, steps=3, rows=2) -> list:
    gates, hidden, inputs = {"lstm": 4, "gru": 3}.get(cell, 1), 5, 3
    of_gates = gates * hidden
    sizes = [(of_gates, inputs), (of_gates, hidden), (of_gates,), (of_gates,)][: 4 if bias else 2]
    weights = [torch.randn(size, dtype=dtype) for size in sizes * directions]
    state = directions, rows, hidden
    x, h, c = (torch.randn(*size, dtype=dtype) for size in [(steps, rows, inputs), state, state])
    return [x, h, c if cell == "lstm" else None, weights, None, None, None, cell, bias, 0]


def _found(way, arguments: list):
    """Its results, or the first line of its error."""
    try:
        return way(*arguments)
    except Exception as error:  # whatever it is
        return f"{type(error).__name__}: {error}".split("\n")[0]


def _same(arguments: list) -> None:
    """The results of both ways, to the bit; where one of them is an error, so is the other."""
    with torch.no_grad():
        found, expected = (_found(way, arguments) for way in (FORWARD, library.forward))
    if isinstance(expected, str):
        assert found == expected
        return
    _equal(found, expected)


def _equal(found, expected) -> None:
    """The same tensors, to the bit; None for an empty one."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, (list, tuple)):
            _equal(ours, theirs)
        elif ours is None:
            assert theirs.numel() == 0
        else:
            assert torch.equal(ours, theirs)
            assert (ours.stride(), ours.dtype) == (theirs.stride(), theirs.dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_without_the_dispatcher(cell, dtype, directions, bias):
    """The operator called directly: its bits, for steps of one row and for sequences, however x lies."""
    for T, B in ((1, 1), (3, 2), (2, 33)):
        arguments = operator_arguments(cell, dtype, directions, bias, T, B)
        _same(arguments)
        _same([arguments[0].transpose(0, 1).contiguous().transpose(0, 1), *arguments[1:]])
        wide = torch.randn(T, B, 6, dtype=dtype)
        _same([wide[..., ::2], *arguments[1:]])
        _same([wide[..., 1:4], *arguments[1:]])


def _other(position: int, value) -> list:
    arguments = operator_arguments("lstm")
    arguments[position] = value(arguments[position]) if callable(value) else value
    return arguments


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, lambda x: x[0]),
        (0, lambda x: x[:0]),
        (0, lambda x: x[:, :0]),
        (0, lambda x: x.double()),
        (0, lambda x: x.to(torch.complex64)),
        (0, lambda x: x.to("meta")),
        (0, torch._neg_view),
        (0, lambda x: torch._efficientzerotensor(x.shape)),
        (0, None),
        (1, torch._neg_view),
        (1, lambda h: h.expand(2, -1, -1)),
        (1, lambda h: h.transpose(1, 2).contiguous().transpose(1, 2)),
        (1, lambda h: h[..., :4]),
        (2, None),
        (2, lambda c: c.double()),
        (3, lambda w: w[:3]),
        (3, lambda w: [*w, w[0]]),
        (3, lambda w: [w[0].t().contiguous().t(), *w[1:]]),
        (3, lambda w: [torch._neg_view(w[0]), *w[1:]]),
        (3, lambda w: [w[0][:18], *w[1:]]),
        (3, lambda w: [w[0], w[1].half(), *w[2:]]),
        (3, lambda w: [w[0], w[1], w[2][:, None], w[3]]),
        (3, lambda w: [torch.tensor(1.0), *w[1:]]),
        (3, lambda w: [*w[:2], torch.randn(2, 5)]),
        (3, tuple),
        (3, []),
        (4, torch.tensor([2, 2, 2])),
        (5, torch.tensor([3, 1])),
        (6, torch.zeros(3, 2, dtype=torch.bool)),
        (7, "gru"),
        (7, "no cell"),
        (7, "lstm:peephole"),
        (7, 3),
        (8, False),
        (8, 1),
        (9, 7),
        (9, -1),
        (9, True),
        (9, 1 << 70),
    ],
)
def test_what_is_out_of_the_ordinary_is_the_operators(position, value):
    """Every other argument: the operator's results, or its error."""
    _same(_other(position, value))


def test_a_projection_is_the_operators():
    arguments = operator_arguments("lstm")
    weights = arguments[3]
    arguments[3] = [weights[0], torch.randn(20, 2), *weights[2:], torch.randn(2, 5)]
    arguments[1] = torch.randn(1, 2, 2)
    _same(arguments)


def test_large_results_are_the_operators():
    """Which maps them in huge pages; a call is little to them."""
    arguments = operator_arguments("rnn_tanh", steps=300, rows=200)
    found = FORWARD(*arguments)
    assert found[3] is not None  # the operator's, an empty tensor
    assert FORWARD(*operator_arguments("rnn_tanh", steps=30, rows=200))[3] is None
    _same(arguments)


def test_a_profiler_sees_the_operator():
    """A call is the operator's whenever somebody counts those."""
    module, x = fastrnn.GRU(3, 5), torch.randn(2, 4, 3)
    with torch.no_grad(), torch.profiler.profile() as found:
        module(x)
    assert "fastrnn::rnn_forward" in {event.name for event in found.events()}
    with torch.no_grad(), torch.autograd.profiler.profile() as found:
        module(x)
    assert "fastrnn::rnn_forward" in {event.name for event in found.function_events}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("save", [1, 2])
def test_what_is_saved(cell, dtype, directions, bias, save):
    """A pass that saves gives the operator's bits, and None for what such a cell has not."""
    for T, B in ((1, 1), (3, 2), (2, 33)):
        arguments = operator_arguments(cell, dtype, directions, bias, T, B)
        arguments[-1] = save
        _same(arguments)
    found = FORWARD(*arguments)
    if dtype == torch.bfloat16:
        assert None not in found  # the operator's own
    else:
        absent = [cell != "lstm", save == 2 or cell.startswith("rnn"), cell != "lstm"]
        assert [t is None for t in found[2:]] == absent


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


def _operator_backward(*arguments):
    """The operator, which takes tensors for what was saved."""
    if len(arguments) == 17:
        saved = [torch.empty(0) if t is None else t for t in arguments[GATES:CELL]]
        arguments = *arguments[:GATES], *saved, *arguments[CELL:]
    return library.backward(*arguments)


def _same_backward(arguments: list) -> None:
    with torch.no_grad():
        found, expected = (_found(way, arguments) for way in (BACKWARD, _operator_backward))
    if isinstance(expected, str):
        assert found == expected
    else:
        _equal(found, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_backward(cell, dtype, directions, bias):
    """The operator's bits, whatever is wanted, whichever gradients there are, and however y's lies."""
    for (T, B), save in product(((1, 1), (3, 2), (2, 33)), (1, 2)):
        arguments = backward_arguments(cell, dtype, directions, bias, T, B, save)
        for needs in range(16):
            _same_backward([*arguments[:-1], needs])
        for present in product((False, True), repeat=3):
            grads = [g if there else None for g, there in zip(arguments, present, strict=False)]
            _same_backward([*grads, *arguments[3:]])
        grad_y = arguments[0]
        wide = torch.randn(T, B + 1, 3 * grad_y.size(2), dtype=dtype)
        for rows in (
            grad_y.transpose(0, 1).contiguous().transpose(0, 1),
            wide[:, 1:, 5 : 5 + grad_y.size(2)],
            wide[:, 1:, ::3],
            grad_y[:1].expand_as(grad_y),
            grad_y[:1, :1, :1].expand_as(grad_y),
        ):
            _same_backward([rows, *arguments[1:]])


def test_backward_is_direct():
    """What is not wanted is None there, and the operator's empty tensor elsewhere."""
    arguments = [*backward_arguments("gru")[:-1], 8]
    found = BACKWARD(*arguments)
    assert found[:3] == (None, None, None)
    assert isinstance(found[3], tuple)
    assert _operator_backward(*arguments)[0].numel() == 0
    assert BACKWARD(*arguments[:-1], 7)[3] == ()


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_sums_are_direct_too(cell):
    """They are expanded, in no memory of their own."""
    arguments = [*backward_arguments(cell)[:-1], 8]
    for i in (GRAD_Y, GRAD_HN, GRAD_CN):
        if arguments[i] is not None:
            arguments[i] = torch.tensor(0.5).expand_as(arguments[i])
    assert BACKWARD(*arguments)[0] is None
    _same_backward(arguments)


def test_training_is_direct(monkeypatch):
    """Of a layer's step as of a whole stack's, on whichever way it came."""
    noted = []
    for name in ("_direct_forward", "_direct_backward"):
        way = getattr(autograd, name)
        monkeypatch.setattr(autograd, name, lambda *a, way=way: noted.append(way(*a)) or noted[-1])
    for options in ({}, {"num_layers": 3}, {"dtype": torch.float64, "save": "recompute"}):
        layer = fastrnn.GRU(3, 5, **options)
        layer(torch.randn(2, 4, 3, dtype=layer.weight_hh_l0.dtype))[0].sum().backward()
        # Nothing is saved but h and the gates; a first layer's input wants no gradient.
        assert all(found[2] is None for found in noted)
        assert noted[-1][0] is None
        assert len(noted) == 2 * layer.num_layers
        noted.clear()


def test_backward_of_what_the_direct_forward_saved():
    """Which is None where a cell saves nothing, also for the operator."""
    for cell, save, directions in product(CELLS, (1, 2), (1, 2)):
        forward = operator_arguments(cell, directions=directions)
        y, h, c, gates, cells = FORWARD(*forward[:-1], save)
        grads = torch.randn_like(y), torch.randn_like(h), None if c is None else torch.randn_like(c), None
        none = torch.empty(0)
        saved = [none if t is None else t for t in (gates, cells)]
        found = BACKWARD(*grads, *forward[:7], y, gates, cells, cell, True, 15)
        _equal(found, library.backward(*grads, *forward[:7], y, *saved, cell, True, 15))


def _other_backward(position: int, value, cell: str) -> list:
    arguments = backward_arguments(cell)
    given = arguments[position]
    if callable(value):
        # What a cell has not is put in the place of a like tensor.
        given = torch.randn(1, 6, 20) if given is None and position != GRAD_CELLS else given
        value = value(given)
    arguments[position] = value
    return arguments


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("position", "value"),
    [
        (GRAD_Y, lambda g: g[0]),
        (GRAD_Y, lambda g: g[:, :1]),
        (GRAD_Y, lambda g: g.double()),
        (GRAD_Y, lambda g: g.to("meta")),
        (GRAD_Y, torch._neg_view),
        (GRAD_Y, lambda g: torch._efficientzerotensor(g.shape)),
        (GRAD_Y, 1.0),
        (GRAD_HN, lambda g: g[..., :4]),
        (GRAD_HN, lambda g: g.expand(2, -1, -1)),
        (GRAD_HN, lambda g: g.transpose(1, 2).contiguous().transpose(1, 2)),
        (GRAD_CN, lambda g: g.double()),
        (GRAD_CN, lambda g: g[:, :1].expand_as(g)),
        (GRAD_CN, lambda g: g.to("meta")),
        (GRAD_CN, 3),
        (GRAD_CELLS, lambda _: torch.randn(1, 6, 5)),
        (X, lambda x: x[:2]),
        (X, lambda x: x.double()),
        (X, None),
        (H0, None),
        (C0, None),
        (C0, lambda c: c[..., 1:]),
        (WEIGHTS, tuple),
        (WEIGHTS, []),
        (WEIGHTS, lambda w: w[:2]),
        (WEIGHTS, lambda w: [w[0].t().contiguous().t(), *w[1:]]),
        (BATCH_SIZES, torch.tensor([2, 2, 2])),
        (LENGTHS, torch.tensor([3, 1])),
        (RESET, torch.zeros(3, 2, dtype=torch.bool)),
        (Y, lambda y: y[:2]),
        (Y, lambda y: y.transpose(0, 1).contiguous().transpose(0, 1)),
        (Y, lambda y: y.double()),
        (Y, torch._neg_view),
        (Y, None),
        (GATES, lambda gates: gates[:, :-1]),
        (GATES, lambda gates: gates[..., :-1]),
        (GATES, lambda gates: gates.double()),
        (GATES, torch.empty(0)),
        (GATES, torch.empty(3)),
        (CELLS_SAVED, lambda cells: cells[:, :-1]),
        (CELLS_SAVED, lambda cells: cells.double()),
        (CELLS_SAVED, torch.empty(0)),
        (CELLS_SAVED, lambda cells: cells.to("meta")),
        (CELLS_SAVED, "s"),
        (GATES, 3),
        (CELL, "gru"),
        (CELL, "no cell"),
        (CELL, None),
        (BIAS, False),
        (BIAS, 1),
        (NEEDS, 16),
        (NEEDS, -1),
        (NEEDS, True),
        (NEEDS, None),
    ],
)
def test_what_is_out_of_the_ordinary_backward_is_the_operators(position, value, cell):
    """Every other argument: the operator's results, or its error; also where the cell has no use for it."""
    _same_backward(_other_backward(position, value, cell))


def test_another_number_of_arguments_is_the_operators_error():
    for way, operator, arguments in (
        (FORWARD, library.forward, operator_arguments("gru")),
        (BACKWARD, library.backward, backward_arguments("gru")),
    ):
        for given in ([], arguments[:1], arguments[:-1], [*arguments, None]):
            error = _found(way, given)
            assert isinstance(error, str)
            assert error.split(":")[0] == _found(operator, given).split(":")[0]


def test_large_gradients_are_the_operators():
    """To which a call is little."""
    arguments = [*backward_arguments("rnn_tanh")[:-1], 8]
    wide = torch.randn(1500, 1500)
    arguments[WEIGHTS] = [torch.randn(1500, 3), wide, torch.randn(1500), torch.randn(1500)]
    arguments[H0], arguments[Y] = torch.zeros(1, 2, 1500), torch.zeros(3, 2, 1500)
    arguments[GRAD_Y], arguments[GRAD_HN] = torch.randn(3, 2, 1500), None
    assert BACKWARD(*arguments)[0] is not None
    _same_backward(arguments)


class _Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


LAYERS = [
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"save": "recompute"}),
    (fastrnn.LSTM, {"bidirectional": True}),
    (fastrnn.GRU, {}),
    (fastrnn.RNN, {}),
]


@pytest.mark.parametrize(("kind", "options"), LAYERS)
@pytest.mark.parametrize("before", [True, False])
def test_who_looks_on_in_training_sees_the_operators(kind, options, before, tmp_path):
    """A profiler, an observer, a mode, a counter of operations, from the beginning or for the backward pass
    alone; and the gradients are the same whoever looks on."""
    layer, x = kind(3, 5, **options), torch.randn(2, 4, 3, requires_grad=True)
    wanted = [x, *layer.parameters()]
    weights = torch.randn(2, 4, 5 * (1 + layer.bidirectional))  # else the gradient would be an expanded one
    expected = torch.autograd.grad((layer(x)[0] * weights).sum(), wanted)

    def run(y):
        for leaf in wanted:
            leaf.grad = None
        ((layer(x)[0] if y is None else y) * weights).sum().backward()
        for leaf, want in zip(wanted, expected, strict=True):
            torch.testing.assert_close(leaf.grad, want)

    def seen(names):
        names = set(names)
        assert any(name.startswith("fastrnn::rnn_backward") for name in names)
        assert any(name.startswith("fastrnn::rnn_forward") for name in names) == before

    def so_far():
        return None if before else layer(x)[0]

    y = so_far()
    with torch.profiler.profile() as found:
        run(y)
    seen(event.name for event in found.events())
    y = so_far()
    with torch.autograd.profiler.profile() as found:
        run(y)
    seen(event.name for event in found.function_events)
    y, observer = so_far(), torch.profiler.ExecutionTraceObserver()
    observer.register_callback(str(tmp_path / "trace.json"))
    observer.start()
    run(y)
    observer.stop()
    observer.unregister_callback()
    seen(node["name"] for node in json.loads((tmp_path / "trace.json").read_text())["nodes"])
    y = so_far()
    with _Seen() as mode:
        run(y)
    seen(mode.names)
    y = so_far()
    with FlopCounterMode(display=False) as counter:
        run(y)
    assert counter.get_total_flops() > 0
    for looks_on in (_Functions(), torch.device("meta")):
        y = so_far()
        with looks_on:
            run(y)


@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_a_checkpoint_whose_passes_differ(kind, options):
    """A checkpoint compares what both of its passes save. It is the same, whoever looks on at one of them."""
    layer, x = kind(3, 5, **options), torch.randn(2, 4, 3, requires_grad=True)
    wanted = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x)[0].square().sum(), wanted)
    for which in ("first", "second"):
        for looks_on in (torch.profiler.profile, lambda: FlopCounterMode(display=False), _Functions):
            for leaf in wanted:
                leaf.grad = None
            with looks_on() if which == "first" else contextlib.nullcontext():
                y = checkpoint(lambda t: layer(t)[0], x, use_reentrant=False)
            with looks_on() if which == "second" else contextlib.nullcontext():
                y.square().sum().backward()
            for leaf, want in zip(wanted, expected, strict=True):
                torch.testing.assert_close(leaf.grad, want)


def test_without_a_door(monkeypatch):
    """Where torch gives no way past its dispatcher the operators are called, with what they take."""
    monkeypatch.setattr(library._C, "Layer", lambda *_: (_ for _ in ()).throw(TypeError("no door")))
    way = library.direct()
    assert way.module({}, None, None) is None
    monkeypatch.setattr(autograd, "_direct_forward", way.forward)
    monkeypatch.setattr(autograd, "_direct_backward", way.backward)
    for kind, options in LAYERS:
        layer, x = kind(3, 5, **options), torch.randn(2, 4, 3)
        found = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
        with monkeypatch.context() as patch:
            patch.setattr(autograd, "_direct_forward", FORWARD)
            patch.setattr(autograd, "_direct_backward", BACKWARD)
            want = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b)


@torch.no_grad()
def test_a_profiler_of_all_threads_sees_the_operators():
    """Also those of a thread that began before it."""
    layer, x = fastrnn.GRU(3, 5), torch.randn(2, 4, 3)
    asked, answered = threading.Event(), threading.Event()

    def call():
        asked.wait()
        with torch.no_grad():
            layer(x)
        answered.set()

    thread = threading.Thread(target=call)
    thread.start()
    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], experimental_config=config
    ) as found:
        asked.set()
        answered.wait(HANGS_S)
    thread.join()
    assert "fastrnn::rnn_forward" in {event.name for event in found.events()}


@torch.no_grad()
def test_who_looks_on_in_inference_sees_the_operators(tmp_path):
    """A profiler and an observer of a layer's call."""
    layer, x, name = fastrnn.GRU(3, 5), torch.randn(2, 4, 3), "fastrnn::rnn_forward"
    layer(x)
    with torch.profiler.profile() as found:
        layer(x)
    assert name in {event.name for event in found.events()}
    observer = torch.profiler.ExecutionTraceObserver()
    observer.register_callback(str(tmp_path / "trace.json"))
    observer.start()
    layer(x)
    observer.stop()
    observer.unregister_callback()
    assert name in {node["name"] for node in json.loads((tmp_path / "trace.json").read_text())["nodes"]}
