"""torch.fx: every tracer sees the layers as leaves, as it sees torch.nn's."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref

import pytest
import torch
from helpers import randn
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx
from torch.fx import Tracer, symbolic_trace
from torch.fx.experimental.optimization import fuse
from torch.utils._pytree import tree_leaves as flat

import fastrnn
from fastrnn import functional

IN, H = 4, 6
LAYERS = {
    "LSTM": lambda ns: ns.LSTM(IN, H, num_layers=2, bidirectional=True, batch_first=True),
    "GRU": lambda ns: ns.GRU(IN, H),
    "RNN": lambda ns: ns.RNN(IN, H, nonlinearity="relu"),
    "SRU": lambda ns: fastrnn.SRU(IN, H, bidirectional=True),
    "SRUpp": lambda ns: fastrnn.SRUpp(IN, H, proj_size=4),
    "MinGRU": lambda ns: fastrnn.MinGRU(IN, H, num_layers=2),
    "IndRNN": lambda ns: fastrnn.IndRNN(IN, H),
    "SLSTM": lambda ns: fastrnn.SLSTM(IN, H),
}
CELLS = {
    "LSTMCell": lambda ns: ns.LSTMCell(IN, H),
    "GRUCell": lambda ns: ns.GRUCell(IN, H),
    "RNNCell": lambda ns: ns.RNNCell(IN, H, nonlinearity="relu"),
}


class Model(nn.Module):
    """A layer between others, with a state that is computed too."""

    def __init__(self, layer: nn.Module, state: int = 0) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(IN, IN), nn.ReLU())
        self.layer = layer
        self.state = state

    def forward(self, x, hx=None):
        x = self.before(x)
        return self.layer(x) if hx is None else self.layer(x, hx)


class Everything(Tracer):
    """Takes nothing for a leaf, not even torch.nn's."""

    def is_leaf_module(self, module, path):
        return False


def _modules(graph_module) -> list[str]:
    return [node.target for node in graph_module.graph.nodes if node.op == "call_module"]


def _roads(name):
    build = {**LAYERS, **CELLS}[name]
    yield build(fastrnn)
    if not name.startswith("SRU"):
        yield build(fastrnn.compat)
        yield fastrnn.convert(build(nn))


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_leaves(name):
    """symbolic_trace gives one node for the layer, and the model's numbers and gradients; with a state too;
    on every road from torch.nn; and so does a tracer that has no leaves."""
    x = randn(*((3, 5, IN) if name in LAYERS else (3, IN)))
    for layer in _roads(name):
        model = Model(layer).eval()
        traced = symbolic_trace(model, concrete_args={"hx": None})
        assert _modules(traced)[-1] == "layer"
        want, got = flat(model(x)), flat(traced(x))
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)
        found = torch.autograd.grad(got[0].sum(), layer.parameters())
        for a, b in zip(found, torch.autograd.grad(want[0].sum(), layer.parameters()), strict=True):
            assert torch.equal(a, b)

        tracer = Everything()
        graph = tracer.trace(model, concrete_args={"hx": None})
        assert [n.target for n in graph.nodes if n.op == "call_module"] == ["layer"]

        given = symbolic_trace(model)  # the state is a Proxy as well
        state = model(x)[1] if name in LAYERS else model(x)
        for a, b in zip(flat(given(x, state)), flat(model(x, state)), strict=True):
            assert torch.equal(a, b)
        assert copy.deepcopy(given)(x, state) is not None


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_quantized_leaves(weights):
    """Quantized layers are leaves too, with a state and without; TorchScript says that it has none."""
    for cls in (fastrnn.LSTM, fastrnn.GRU):
        model, x = Model(fastrnn.quantize(cls(IN, H).eval(), weights=weights)).eval(), randn(3, 5, IN)
        traced = symbolic_trace(model, concrete_args={"hx": None})
        assert _modules(traced)[-1] == "layer"
        for a, b in zip(flat(traced(x)), flat(model(x)), strict=True):
            assert torch.equal(a, b)
        state, given = model(x)[1], symbolic_trace(model)
        for a, b in zip(flat(given(x, state)), flat(model(x, state)), strict=True):
            assert torch.equal(a, b)
        with pytest.raises(RuntimeError, match="has no form in TorchScript"):
            torch.jit.script(model)


def test_under_patch():
    """Within patch() torch.nn's layers stay the leaves that they are."""
    model = Model(nn.LSTM(IN, H))
    x = randn(5, 3, IN)
    with fastrnn.patch():
        traced = symbolic_trace(model, concrete_args={"hx": None})
        assert _modules(traced)[-1] == "layer"
        assert torch.equal(traced(x)[0], model(x)[0])


def test_arguments():
    """A Proxy anywhere among the arguments, by name or by place, is enough; defaults are left out."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = fastrnn.GRU(IN, H)
            self.register_buffer("x", randn(5, 3, IN))

        def forward(self, lengths, hx):
            return self.layer(self.x, lengths=lengths), self.layer(self.x, hx)

    model = Masked()
    traced = symbolic_trace(model)
    first, second = (node for node in traced.graph.nodes if node.op == "call_module")
    assert [len(first.args), *first.kwargs] == [1, "lengths"]
    assert [len(second.args), *second.kwargs] == [2]
    arguments = torch.tensor([5, 0, 2]), randn(1, 3, H)
    for a, b in zip(flat(traced(*arguments)), flat(model(*arguments)), strict=True):
        assert torch.equal(a, b)


def test_functions():
    """The functions of fastrnn.functional become nodes of their own."""

    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.cell = nn.LSTM(IN, H), nn.GRUCell(IN, H)
            self.sru = fastrnn.SRUCell(IN, H)

        def forward(self, x, hx):
            y, (h, _) = functional.lstm(x, None, list(self.lstm.parameters()))
            h = functional.gru_cell(x[0], hx, *self.cell.parameters())
            s = functional.sru(x, None, self.sru.transform_module.weight, self.sru.weight_c, self.sru.bias)
            return y, h, s[0]

    model = Functions()
    traced = symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert {functional.lstm, functional.gru_cell, functional.sru} <= set(called)
    x, hx = randn(5, 3, IN), randn(3, H)
    for a, b in zip(traced(x, hx), model(x, hx), strict=True):
        assert torch.equal(a, b)


def test_tools():
    """fuse() of an inference model, and quantization of the layers around, which is what fx is used for."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(IN, IN, 3, padding=1), nn.BatchNorm1d(IN)
            self.layer = fastrnn.LSTM(IN, H, batch_first=True)
            self.head = nn.Linear(H, 2)

        def forward(self, x):
            return self.head(self.layer(self.norm(self.conv(x)).transpose(1, 2))[0])

    model, x = Frames().eval(), randn(3, IN, 7)
    torch.testing.assert_close(fuse(model)(x), model(x))
    prepared = quantize_fx.prepare_fx(model, get_default_qconfig_mapping(), (x,))
    assert type(prepared.layer) is fastrnn.LSTM
    prepared(x)
    quantized = quantize_fx.convert_fx(prepared)
    assert type(quantized.layer) is fastrnn.LSTM
    assert type(quantized.head) is not nn.Linear
    assert (quantized(x) - model(x)).abs().max() < 0.1


def test_what_is_no_leaf():
    """As with torch.nn: a subclass that does more than the layer is looked into and not replaced by it, and a
    layer that is itself the model cannot be traced; errors of calls without a tracer are what they were."""

    class Doubles(fastrnn.LSTM):
        def forward(self, x, hx=None):
            return 2 * super().forward(x, hx)[0]

    message = "LSTM: .* should be .*, got Proxy"
    for module in (Model(Doubles(IN, H)), fastrnn.LSTM(IN, H)):
        with pytest.raises(TypeError, match=message):
            symbolic_trace(module)
    with pytest.raises(TypeError, match="input should be a Tensor, got str"):
        fastrnn.LSTM(IN, H)("x")


def test_errors_hold_nothing():
    """The tensors of a call that failed are freed with its error, without a garbage collection."""
    layer = fastrnn.LSTM(IN, H)
    gc.disable()
    try:
        x = randn(5, 3, IN)
        freed = weakref.ref(x)
        with contextlib.suppress(TypeError):
            layer(x, "no state")
        with contextlib.suppress(TypeError):
            functional.gru(x, "no state", list(nn.GRU(IN, H).parameters()))
        del x
        assert freed() is None
    finally:
        gc.enable()
