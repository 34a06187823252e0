"""torch.compile(fullgraph=True) with default settings: the numbers of eager mode, and few compilations.

The wide grid stops after AOTAutograd (backend "aot_eager"), which is where a layer's graph, fake tensors and
derivative are made; Inductor, the default backend, then sees operators it does not look into.
"""

from __future__ import annotations

import pytest
import torch
from helpers import CELLS, LAYERS, assert_same, flat, pair, randn, results
from selection import thorough
from tolerances import assert_close
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn

IN, H = 4, 6
OPTIONS = (
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False, "save": "recompute", "bidirectional": True},
)


@pytest.fixture(autouse=True)
def _forget_graphs():
    """No graph of another test, and none left over."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(module: nn.Module, dynamic: bool | None = None, backend: str = "aot_eager"):
    """The compiled module, and what counts its graphs."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(module, fullgraph=True, dynamic=dynamic, backend=counter), counter


def _same_as_eager(compiled, eager, x, hx=None):
    """Outputs and every gradient."""
    got = {label.replace("_orig_mod.", ""): t for label, t in results(compiled, x, hx).items()}
    data = x.data if hasattr(x, "batch_sizes") else x
    assert_same(got, results(eager, x, hx), data.dtype)


def _inputs(name: str, kind: str, count: int = 4):
    """Inputs of which every one has other sizes: (T, B, I), packed, or (B, I) for a cell."""
    for i in range(count):
        steps, rows = 5 + 2 * i, 3 + i
        if name in CELLS:
            yield randn(rows, IN, seed=i)
        elif kind == "packed":
            lengths = [steps, 3] + [2] * (rows - 2)
            yield pack_padded_sequence(randn(steps, rows, IN, seed=i), lengths, enforce_sorted=i % 2 == 0)
        else:
            yield randn(steps, rows, IN, seed=i)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, options):
    """One graph for a layer, without and with a given state, equal to eager mode, gradients included."""
    ours, _ = pair(name, IN, H, **options, **({"proj_size": 3} if name == "LSTM" else {}))
    compiled, counter = _compiled(ours)
    x = randn(3, 5, IN)
    _same_as_eager(compiled, ours, x)
    states = flat(ours(x)[1])
    hx = tuple(s.detach() for s in states) if name == "LSTM" else states[0].detach()
    _same_as_eager(compiled, ours, x, hx)
    assert counter.frame_count == 2  # with hx and without are two programs


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    """A cell in one graph, without and with a state."""
    ours, _ = pair(name, IN, H)
    compiled, _ = _compiled(ours)
    x = randn(3, IN)
    _same_as_eager(compiled, ours, x)
    state = randn(3, H, seed=2)
    _same_as_eager(compiled, ours, x, (state, state.cos()) if name == "LSTMCell" else state)


KINDS = [(name, "padded") for name in (*LAYERS, *CELLS)] + [(name, "packed") for name in LAYERS]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_sizes_change(name, kind):
    """T, B and the batch_sizes change from call to call: the second call compiles once more, with dynamic
    sizes, and then none does."""
    ours, _ = pair(name, IN, H)
    compiled, counter = _compiled(ours)
    frames = []
    for x in _inputs(name, kind):
        _same_as_eager(compiled, ours, x)
        frames.append(counter.frame_count)
    # A batch that was not sorted carries indices, so is another program than one that was.
    assert frames[-1] <= (4 if kind == "packed" else 2), frames
    if kind == "padded":
        assert frames == [1, 2, 2, 2]


@pytest.mark.parametrize("name", LAYERS)
def test_packed_with_a_state(name):
    """Packed batches of changing sizes with states, which are put in the order of the batch inside the graph;
    a state for another number of rows is an error when the graph runs."""
    ours, _ = pair(name, IN, H, bidirectional=True)
    compiled, counter = _compiled(ours)

    def states(rows):
        h = randn(2, rows, H, seed=rows)
        return (h, h.cos()) if name == "LSTM" else h

    for i in range(3):
        lengths = [2, 5 + i] + [3] * (1 + i)
        x = pack_padded_sequence(randn(5 + i, 3 + i, IN, seed=i), lengths, enforce_sorted=False)
        _same_as_eager(compiled, ours, x, states(3 + i))
    assert counter.frame_count == 2
    with pytest.raises(RuntimeError, match="h0"):
        compiled(pack_padded_sequence(randn(5, 4, IN), [5, 4, 3, 2]), states(3))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_dynamic(name, kind):
    """dynamic=True: one compilation in all."""
    ours, _ = pair(name, IN, H)
    compiled, counter = _compiled(ours, dynamic=True)
    for i, x in enumerate(_inputs(name, kind)):
        if kind == "padded" or i % 2 == 0:
            _same_as_eager(compiled, ours, x)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", [pytest.param("LSTM", marks=thorough), "GRUCell"])
def test_inductor(name):
    """The default backend, changing sizes: outputs and every gradient of a model around the layer."""
    ours, _ = pair(name, IN, H)
    compiled = torch.compile(ours, fullgraph=True)
    for x in _inputs(name, "padded", 2):
        _same_as_eager(compiled, ours, x)


def test_model_trains():
    """A whole model in one graph, layer norm and head around two layers, follows eager mode under SGD."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.GRU(IN, H, 2, dropout=0.3)
            self.norm, self.head = nn.LayerNorm(H), nn.Linear(H, 2)

        def forward(self, x):
            y, h = self.rnn(x)
            return self.head(self.norm(y)), h

    histories = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        model = Model()
        model.rnn.eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        call = _compiled(model)[0] if compile_it else model
        losses = []
        for i in range(3):
            optimizer.zero_grad()
            y, h = call(randn(4 + i, 3, IN, seed=i))
            loss = y.pow(2).mean() + h.pow(2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        histories.append(torch.stack([*losses, *(p.detach().sum() for p in model.parameters())]))
    assert_close(histories[1], histories[0], torch.float32, gradient=True)


def test_dropout_and_no_gradients():
    """Dropout drops in training and not in eval mode; no_grad and inference_mode compile too."""
    ours, _ = pair("LSTM", IN, H, 2, dropout=0.5)
    compiled, counter = _compiled(ours)
    x = randn(5, 3, IN)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    ours.eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            got, expected = flat(compiled(x)), flat(ours(x))
        for a, b in zip(got, expected, strict=True):
            assert_close(a, b, torch.float32)
    assert counter.frame_count == 3


def test_autocast():
    """Inside torch.autocast a layer's graph gives eager mode's dtypes and numbers."""
    for name in LAYERS:
        torch._dynamo.reset()
        ours, _ = pair(name, IN, H)
        compiled, _ = _compiled(ours)
        x = randn(5, 3, IN)
        with torch.autocast("cpu", torch.bfloat16):
            got, expected = flat(compiled(x)), flat(ours(x))
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype
            assert_close(a, b, torch.bfloat16)


def test_weights_that_are_computed():
    """A parametrized weight is computed inside the graph, and its parameters get their gradients."""
    ours, _ = pair("LSTM", IN, H)
    parametrizations.weight_norm(ours, "weight_hh_l0")
    compiled, _ = _compiled(ours)
    _same_as_eager(compiled, ours, randn(5, 3, IN))


def test_transforms_and_checkpoints_within_a_graph():
    """Protects per-sample gradients and checkpoints under torch.compile: a module that kept the tensors
    of a call, wrapped by a transform, could not be traced, nor checkpointed in a graph ever after."""
    module, x = fastrnn.GRU(IN, H), randn(5, 3, IN)
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(weights, row):
        return functional_call(module, weights, (row,))[0].sin().sum()

    each = vmap(grad(loss), (None, 1))
    expected = each(weights, x)
    got = torch.compile(each, fullgraph=True, backend="aot_eager")(weights, x)
    for name, one in expected.items():
        assert_close(got[name], one, torch.float32)

    def remembered(x):
        return checkpoint(lambda x: module(x)[0], x, use_reentrant=False)

    x.requires_grad_()
    compiled = torch.compile(remembered, fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(x).sin().sum(), x)
    (expected,) = torch.autograd.grad(module(x)[0].sin().sum(), x)
    assert_close(got, expected, torch.float32)


def test_wrong_input():
    """A wrong input is eager mode's error, named, under torch.compile too."""
    compiled, _ = _compiled(fastrnn.LSTM(IN, H))
    with pytest.raises(Exception, match=r"input.size\(-1\) must be equal to input_size. Expected 4, got 5"):
        compiled(randn(2, 3, 5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs need one")
@pytest.mark.parametrize("name", LAYERS)
def test_reduce_overhead(name):
    """mode="reduce-overhead", which replays CUDA graphs: outputs and gradients, call after call."""
    ours, _ = pair(name, IN, H)
    ours.cuda()
    compiled = torch.compile(ours, fullgraph=True, mode="reduce-overhead")
    for i in range(4):
        _same_as_eager(compiled, ours, randn(5, 3, IN, seed=i).cuda())
