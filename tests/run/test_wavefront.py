"""Stacked layers in pieces on streams of their own: fastrnn.wavefront, and when the plan asks for it."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.utils.checkpoint

import fastrnn
from fastrnn._ops import library
from fastrnn._plan import gpus
from fastrnn._plan.wavefront import planned
from fastrnn._run import wavefront

H100 = gpus.KNOWN["H100"]
LAYERS = {
    "lstm": lambda: fastrnn.LSTM(5, 7, 3),
    "lstm, projection": lambda: fastrnn.LSTM(5, 7, 2, proj_size=3),
    "gru, no bias": lambda: fastrnn.GRU(5, 7, 3, bias=False),
    "rnn, batch first": lambda: fastrnn.RNN(5, 7, 4, batch_first=True, nonlinearity="relu"),
    "lstm, recompute": lambda: fastrnn.LSTM(5, 7, 2, save="recompute"),
}


def _results(layer, x, hx, pieces):
    """Output, last states and every gradient."""
    x, parameters = x.clone().requires_grad_(), list(layer.parameters())
    with fastrnn.wavefront(pieces):
        y, states = layer(x, hx)
    states = list(states) if isinstance(states, tuple) else [states]
    loss = sum((t.sin() * (n + 1)).sum() for n, t in enumerate([y, *states]))
    return [y, *states, *torch.autograd.grad(loss, [x, *parameters])]


@pytest.mark.parametrize("pieces", [2, 3, 11, 40])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_pieces_equal_the_whole(name, pieces, given):
    """Protects the numbers: a wavefront changes no output, state or gradient, however many pieces."""
    layer = LAYERS[name]().double()
    x = torch.randn(3, 11, 5).double() if layer.batch_first else torch.randn(11, 3, 5).double()
    hx = None
    if given:
        h = torch.randn(layer.num_layers, 3, layer.proj_size or 7).double()
        hx = (h, torch.randn(layer.num_layers, 3, 7).double()) if layer.mode == "LSTM" else h
    for whole, cut in zip(_results(layer, x, hx, 1), _results(layer, x, hx, pieces), strict=True):
        assert whole.shape == cut.shape
        torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-12)


def test_pieces_are_run_at_all(monkeypatch):
    """Protects the other tests: within the context a stack takes the path in pieces, outside it does not."""
    calls = []
    monkeypatch.setattr(
        wavefront, "run", lambda *a, _run=wavefront.run, **k: calls.append(1) or _run(*a, **k)
    )
    layer, x = fastrnn.GRU(4, 4, 2), torch.randn(6, 2, 4)
    layer(x)
    assert not calls
    with fastrnn.wavefront(2):
        layer(x)
    assert len(calls) == 1
    layer(x)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "layer",
    [
        lambda: fastrnn.LSTM(4, 6, 2, bidirectional=True),
        lambda: fastrnn.LSTM(4, 6, 2, dropout=0.5),
        lambda: fastrnn.LSTM(4, 6, 2, backend="reference"),
    ],
    ids=["bidirectional", "dropout", "reference"],
)
def test_what_cannot_be_cut_runs_whole(layer):
    """Protects layers that need the whole sequence below them, and dropout's masks: the same bits as ever."""
    layer, x = layer(), torch.randn(6, 2, 4)
    torch.manual_seed(3)
    whole = layer(x)[0]
    torch.manual_seed(3)
    with fastrnn.wavefront(3):
        assert torch.equal(layer(x)[0], whole)


def test_lengths_and_packed_batches_run_whole():
    """Protects masked and packed batches within the context."""
    layer, x = fastrnn.GRU(4, 6, 2), torch.randn(6, 2, 4)
    lengths = torch.tensor([6, 3])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    expected = layer(x, lengths=lengths)[0], layer(packed)[0].data
    with fastrnn.wavefront(3):
        assert torch.equal(layer(x, lengths=lengths)[0], expected[0])
        assert torch.equal(layer(packed)[0].data, expected[1])


class _Stream:
    """A stream with a clock for every stream: what of each has surely happened before its next work."""

    def __init__(self, name):
        self.name, self.clock = name, {name: 0}

    def wait_stream(self, other):
        for name, time in other.clock.items():
            self.clock[name] = max(self.clock.get(name, 0), time)


class _Value:
    """A tensor's stand-in: where and when it was made, and whose readers its memory waits for."""

    def __init__(self, stream):
        stream.clock[stream.name] += 1
        self.made, self.recorded = (stream.name, stream.clock[stream.name]), {stream.name}

    def record_stream(self, stream):
        self.recorded.add(stream.name)

    def read(self, stream):
        name, time = self.made
        assert stream.clock.get(name, 0) >= time, f"{stream.name} reads what {name} has not made yet"


@pytest.mark.parametrize(("layers", "pieces"), [(1, 3), (2, 2), (3, 5), (5, 3)])
def test_every_reader_waits_for_its_writer(monkeypatch, layers, pieces):
    """Protects against a race that no CPU run shows: streams wait for what they read, and for no more than
    that, and memory is not given away under a reader on another stream, what comes from outside included:
    backward reads that once more."""
    main, streams = _Stream("main"), [_Stream(f"layer {k}") for k in range(layers)]
    current = [main]

    @contextlib.contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "stream", on)
    read_by = {}
    ahead = []

    def layer(x, h, c, weights):
        stream, number = current[-1], of_layers.index(weights)
        assert stream is streams[number]
        for value in (x, h, c, *weights):
            value.read(stream)
            read_by.setdefault(value, set()).add(stream.name)
        if number:
            ahead.append(stream.clock[streams[number - 1].name] - x.made[1])
        return _Value(stream), _Value(stream), _Value(stream)

    values = [_Value(main) for _ in range(pieces)]
    states = [(_Value(main), _Value(main)) for _ in range(layers)]
    of_layers = [[_Value(main)] for _ in range(layers)]
    wavefront._run_pieces(layer, values, states, of_layers, streams, main)
    for value in [*values, *(s for pair in states for s in pair)]:
        value.read(main)
        read_by.setdefault(value, set()).add("main")
    for value, readers in read_by.items():
        assert readers <= value.recorded
    assert all(steps <= 2 for steps in ahead)  # a piece makes three values: y, h and c


def _planned(num_layers=2, steps=2048, rows=16, hidden=512, dtype="bfloat16", training=False, cell="lstm"):
    return planned(cell, num_layers, steps, rows, hidden, 0, dtype, training, True, H100)


def test_the_plan_cuts_where_it_pays():
    """Protects the choice: long stacks on a part of the GPU are cut, the rest is left whole."""
    assert _planned() > 1
    assert _planned(num_layers=4, training=True) > 1
    assert _planned(num_layers=8) >= _planned(num_layers=2)
    assert _planned(steps=16) == 1  # pieces of a few steps cost more than they bring
    assert _planned(dtype="float64") == 1  # stepwise: no kernel to overlap
    assert _planned(rows=512, hidden=2048) == 1


def test_nothing_is_cut_unasked(monkeypatch):
    """Protects a first call on a GPU: whatever times the plan's table holds, no device has proven pieces."""
    monkeypatch.setattr(library, "plan_table_provenance", lambda: "H100, measured")
    monkeypatch.setattr(library, "cuda_loaded", True)
    x = torch.empty(2048, 16, 512, dtype=torch.bfloat16, device="meta")
    assert wavefront.pieces(x) == 1
    with fastrnn.wavefront(4):
        assert wavefront.pieces(x) == 4
    with fastrnn.wavefront(None):
        assert wavefront.pieces(x) == 1


def test_explain_names_the_pieces(monkeypatch):
    """Protects the way to know of it: explain says how many pieces the plan's times ask for, or nothing."""
    monkeypatch.setattr(
        library, "cuda_loaded", True
    )  # on paper; a build without CUDA kernels has none to cut
    deep = fastrnn.LSTM(512, 512, 2, device="meta", dtype=torch.bfloat16)
    wanted = f"wavefront of {_planned()} pieces"
    said = fastrnn.explain(deep.eval(), (2048, 16), device="cuda", gpu="H100")
    assert any(wanted in note for note in said.notes)
    for other in (
        fastrnn.LSTM(512, 512, 1, device="meta", dtype=torch.bfloat16),
        fastrnn.LSTM(512, 512, 2, device="meta", dtype=torch.bfloat16, bidirectional=True),
        fastrnn.LSTM(512, 512, 2, device="meta", dtype=torch.bfloat16, dropout=0.1),
    ):
        notes = fastrnn.explain(other, (2048, 16), device="cuda", gpu="H100", training=True).notes
        assert not any("wavefront" in note for note in notes)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True])
def test_wrong_pieces_have_a_clear_error(wrong):
    """Protects a user's mistake from becoming a silent default."""
    with (
        pytest.raises((TypeError, ValueError), match=r"wavefront: expected .*pieces.* got"),
        fastrnn.wavefront(wrong),
    ):
        pass


def test_the_context_ends_after_an_error():
    """Protects what follows a failure: the number of pieces is the one from before."""
    with pytest.raises(ZeroDivisionError), fastrnn.wavefront(5):
        _ = 1 / 0
    assert wavefront._asked.get() is None


def test_within_a_compiled_function():
    """Protects one graph: torch.compile takes a function that enters the context, and runs whole layers."""
    layer, x = fastrnn.LSTM(4, 6, 3), torch.randn(11, 3, 4)

    def cut(x):
        with fastrnn.wavefront(4):
            return layer(x)[0]

    compiled = torch.compile(cut, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x)[0])


def test_within_a_checkpoint():
    """Protects the docstring's way to checkpoint: within the function both runs are cut alike, wherever
    backward() runs."""
    layer, x = fastrnn.GRU(4, 6, 3), torch.randn(11, 3, 4, requires_grad=True)

    def cut(x):
        with fastrnn.wavefront(3):
            return layer(x)[0]

    y = torch.utils.checkpoint.checkpoint(cut, x, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.sin().sum(), x)
    (expected,) = torch.autograd.grad(layer(x)[0].sin().sum(), x)
    torch.testing.assert_close(grad, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("cell", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_streams_on_a_gpu(cell):
    """Protects the real streams: pieces equal the whole in every output and gradient, many times over."""
    layer = cell(64, 128, 4, device="cuda")
    for _ in range(20):
        x = torch.randn(256, 8, 64, device="cuda")
        for whole, cut in zip(_results(layer, x, None, 1), _results(layer, x, None, 8), strict=True):
            torch.testing.assert_close(cut, whole, rtol=2e-3, atol=2e-3)
