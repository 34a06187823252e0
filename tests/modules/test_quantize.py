"""fastrnn.quantize: models whose recurrent layers have weights of low precision."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from quantized_cases import CASES, WEIGHTS, make
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fastrnn
from fastrnn.modules.quantized import QuantizedLayer


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Linear(6, 10)
        self.rnn = nn.LSTM(10, 24, num_layers=2, batch_first=True, dropout=0.3)
        self.body = nn.ModuleList([fastrnn.GRU(24, 20, bidirectional=True, batch_first=True)])
        self.same = self.rnn
        self.head = nn.Linear(40, 4)

    def forward(self, x):
        y, _ = self.rnn(self.embed(x))
        y, _ = self.body[0](y)
        return self.head(y)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_model_and_its_copy(weights):
    """Layers of torch.nn and fastrnn are exchanged wherever they are, what is one module stays one,
    everything else is as it was, and the model itself is not touched unless asked."""
    model = Model().eval()
    before, x = copy.deepcopy(model.state_dict()), torch.randn(3, 7, 6)
    y = model(x)
    made = fastrnn.quantize(model, weights)
    assert type(made.rnn) is fastrnn.QuantizedLSTM
    assert type(made.body[0]) is fastrnn.QuantizedGRU
    assert made.same is made.rnn
    assert type(made.head) is nn.Linear
    assert made.head is not model.head
    assert type(model.rnn) is nn.LSTM
    assert all(torch.equal(a, before[n]) for n, a in model.state_dict().items())
    close = {"int8": 4e-2, "bfloat16": 8e-3}[weights]
    found = made(x)  # with gradients enabled: the layers give none, the Linear behind them has its own
    assert (found - y).abs().max() < close * y.abs().max()
    found.sum().backward()
    assert made.head.weight.grad is not None
    assert made.embed.weight.grad is None
    same = fastrnn.quantize(model, weights, inplace=True)
    assert same is model
    assert torch.equal(model(x), found)
    assert not [n for n, _ in made.named_parameters() if n.startswith(("rnn", "body"))]
    size = lambda m: sum(t.numel() * t.element_size() for t in m.state_dict().values())  # noqa: E731
    assert size(fastrnn.quantize(fastrnn.LSTM(256, 256), weights)) < size(fastrnn.LSTM(256, 256)) * (
        0.53 if weights == "bfloat16" else 0.28
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("name", "inputs", "hidden", "options"), CASES[:6])
@torch.no_grad()
def test_state_dict_copies_and_pickles(name, inputs, hidden, options, weights):
    """A quantized layer goes through state_dict, copy, pickle and torch.save, and gives the same numbers."""
    layer = make(name, inputs, hidden, **options)
    made, x = fastrnn.quantize(layer, weights), torch.randn(5, 5, inputs)
    y, state = made(x)
    made(x)  # the quick way, which nothing may take along
    other = fastrnn.quantize(make(name, inputs, hidden, **options), weights)
    with torch.no_grad():
        blank = copy.deepcopy(layer)
        for parameter in blank.parameters():
            parameter.zero_()
    loaded = fastrnn.quantize(blank, weights)
    assert not torch.equal(loaded(x)[0], y)
    loaded.load_state_dict(made.state_dict())
    assert loaded.weight_errors == [] != made.weight_errors
    kept = io.BytesIO()
    torch.save(made, kept)
    kept.seek(0)
    for got in (
        other,
        loaded,
        copy.deepcopy(made),
        pickle.loads(pickle.dumps(made)),
        torch.load(kept, weights_only=False),
    ):
        for _ in range(2):  # both ways
            found, end = got(x)
            assert torch.equal(found, y)
            assert all(torch.equal(a, b) for a, b in zip(_flat(end), _flat(state), strict=True))
    assert repr(loaded) == repr(made)
    assert f"weights={weights!r}" in repr(made)


def _flat(state):
    return state if isinstance(state, tuple) else (state,)


@torch.no_grad()
def test_changed_buffers_are_seen():
    """What is loaded into the buffers is what the next call computes with, also after quick calls."""
    made, x = fastrnn.quantize(make("GRU", 5, 9)), torch.randn(3, 2, 5)
    other = fastrnn.quantize(fastrnn.GRU(5, 9))
    assert not torch.equal(made(x)[0], other(x)[0])
    made(x)
    made.load_state_dict(other.state_dict())
    assert torch.equal(made(x)[0], other(x)[0])
    made.packed_l0 = fastrnn.quantize(make("GRU", 5, 9)).packed_l0
    assert torch.equal(made(x)[0], fastrnn.quantize(make("GRU", 5, 9))(x)[0])
    made.packed_l0 = made.packed_l0[:-1]
    with pytest.raises(RuntimeError, match=r"packed\[0\]: expected"):
        made(x)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
@torch.no_grad()
def test_packed_sequences_and_lengths(name, directions):
    """Rows that end sooner are those of one sequence alone, in a PackedSequence, sorted and not, and with
    lengths; a row of length 0 keeps its state."""
    made = fastrnn.quantize(make(name, 6, 21, num_layers=2, bidirectional=directions == 2))
    sequences = [torch.randn(n, 6) for n in (4, 7, 1, 5)]
    alone = [made(x) for x in sequences]
    y, state = made(pack_sequence(sequences, enforce_sorted=False))
    padded, _ = nn.utils.rnn.pad_packed_sequence(y)
    given, last = made(nn.utils.rnn.pad_sequence(sequences), lengths=torch.tensor([4, 7, 1, 5]))
    for b, (own, end) in enumerate(alone):
        for found in (padded, given):
            torch.testing.assert_close(found[: len(own), b], own, rtol=0, atol=1e-6)
            assert (found[len(own) :, b] == 0).all()
        for s, g, e in zip(_flat(state), _flat(last), _flat(end), strict=True):
            torch.testing.assert_close(s[:, b], e, rtol=0, atol=1e-6)
            torch.testing.assert_close(g[:, b], e, rtol=0, atol=1e-6)
    h = torch.randn(2 * directions, 2, 21).tanh()
    hx = (h, h * 2) if name == "LSTM" else h
    y, end = made(torch.randn(3, 2, 6), hx, lengths=torch.tensor([0, 3]))
    assert (y[:, 0] == 0).all()
    assert all(torch.equal(a[:, 0], b[:, 0]) for a, b in zip(_flat(end), _flat(hx), strict=True))
    nothing, kept = made(torch.randn(3, 2, 6), hx, lengths=torch.tensor([0, 0]))
    assert (nothing == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(_flat(kept), _flat(hx), strict=True))
    sorted_ = pack_padded_sequence(torch.randn(5, 2, 6), torch.tensor([5, 2]))
    assert made(sorted_, hx)[0].data.shape == (7, 21 * directions)


@torch.no_grad()
def test_shapes_of_every_kind():
    """No rows, one sequence without B, strided inputs and states, steps: what the layer itself takes."""
    layer = make("LSTM", 6, 21)
    made = fastrnn.quantize(layer)
    y, (h, c) = made(torch.randn(4, 0, 6))
    assert (y.shape, h.shape, c.shape) == ((4, 0, 21), (1, 0, 21), (1, 0, 21))
    x = torch.randn(4, 3, 12)[..., ::2]
    wide = torch.randn(1, 3, 42)[..., ::2]
    for _ in range(2):
        assert torch.equal(made(x, (wide, wide))[0], made(x.contiguous(), (wide.contiguous(),) * 2)[0])
        assert torch.equal(made(x[:, 0])[0], made(x[:, :1])[0][:, 0])
    state, outputs = None, []
    for x_t in x:
        y_t, state = made.step(x_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs), made(x)[0], rtol=0, atol=1e-6)
    assert made.step(x[0, 0])[0].shape == (21,)


def test_what_has_no_such_form():
    """Errors name the layer, and nothing is exchanged; kinds of layers that are not meant stay as they
    are."""
    model = nn.ModuleDict({"a": nn.GRU(4, 5), "deep": nn.Sequential(nn.LSTM(4, 5, dtype=torch.float64))})
    with pytest.raises(
        RuntimeError, match=r"quantize: layer 'deep.0': .*float32 weights on the CPU, got torch.float64"
    ):
        fastrnn.quantize(model, inplace=True)
    assert type(model["a"]) is nn.GRU
    with pytest.raises(RuntimeError, match=r"layer 'x': .*without a variant's options"):
        fastrnn.quantize(nn.ModuleDict({"x": fastrnn.LSTM(4, 5, norm="layer")}))
    with torch.no_grad():
        model["a"].weight_ih_l0[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"quantize: layer 'a': GRU: weight_ih_l0 cannot be quantized"):
        fastrnn.quantize(nn.ModuleDict({"a": model["a"]}))
    with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module, got int"):
        fastrnn.quantize(3)
    with pytest.raises(ValueError, match=r"weights should be 'bfloat16' or 'int8', got 'float32'"):
        fastrnn.quantize(nn.GRU(4, 5), "float32")
    with pytest.raises(TypeError, match=r"QuantizedGRU: layer should be a GRU, got LSTM"):
        fastrnn.QuantizedGRU(nn.LSTM(4, 5))

    class Own(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    others = nn.ModuleList([Own(4, 5), nn.LSTMCell(4, 5), fastrnn.SRU(4, 5), nn.Linear(4, 5)])
    kept = fastrnn.quantize(others)
    assert [type(m) for m in kept] == [type(m) for m in others]


@torch.no_grad()
def test_hooks_and_parametrized_weights():
    """Forward hooks go along, and weights that are computed are quantized as they come out."""
    layer = fastrnn.LSTM(5, 8)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    seen = []
    layer.register_forward_hook(lambda m, i, o: seen.append(type(m)))
    layer.register_forward_hook(lambda m, i, k, o: seen.append(list(k)), with_kwargs=True)
    layer.register_forward_pre_hook(lambda m, i, k: seen.append(list(k)), with_kwargs=True)
    layer.register_forward_hook(lambda m, i, o: seen.append("always"), always_call=True)
    made, x = fastrnn.quantize(layer), torch.randn(3, 2, 5)
    y, _ = made(x, hx=None)
    assert seen == [["hx"], fastrnn.QuantizedLSTM, ["hx"], "always"]
    seen.clear()
    with pytest.raises(RuntimeError, match="input_size"):
        made(x[..., :4])
    assert seen == [[], "always"]
    assert (y - layer(x)[0]).abs().max() < 3e-2


@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_export_and_compile(weights):
    """torch.export records one operator with the bytes as its buffers; the program gives the same numbers
    after it was saved and loaded. torch.compile and torch.jit.trace go through too."""
    made = fastrnn.quantize(make("LSTM", 6, 21, num_layers=2), weights)
    x = torch.randn(4, 3, 6)
    y, (h, c) = made(x)
    program = torch.export.export(made, (x,))
    assert "rnn_quantized" in program.graph_module.code
    kept = io.BytesIO()
    torch.export.save(program, kept)
    kept.seek(0)
    for run in (
        torch.export.load(kept).module(),
        torch.compile(made, backend="aot_eager", fullgraph=True),
        torch.jit.trace(made, (x,), check_trace=False),
    ):
        found, (hn, cn) = run(x)
        assert torch.equal(found, y)
        assert torch.equal(hn, h)
        assert torch.equal(cn, c)


@torch.no_grad()
def test_in_place_of_quantize_dynamic():
    """What torch's quantize_dynamic makes of a model, in the same place: the same calls, closer to float32 or
    as close."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.LSTM(64, 128)}).eval()
    x = torch.randn(20, 2, 64)
    y = model["rnn"](x)[0]
    engines = [e for e in torch.backends.quantized.supported_engines if e != "none"]
    if not engines:
        pytest.skip("this torch has no engine for quantized layers")
    theirs = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM}, dtype=torch.qint8)["rnn"](x)[0]
    ours = fastrnn.quantize(model)["rnn"](x)[0]
    assert (ours - y).abs().mean() < 1.1 * (theirs - y).abs().mean()


@torch.no_grad()
def test_lengths_are_given_as_to_the_layer():
    """A model's calls stay as they are when its layers are exchanged: lists, other integers, one sequence."""
    layer = make("LSTM", 6, 21)
    made, x = fastrnn.quantize(layer), torch.randn(4, 3, 6)
    want, _ = made(x, lengths=torch.tensor([4, 1, 2]))
    for lengths in ([4, 1, 2], (4, 1, 2), torch.tensor([4, 1, 2], dtype=torch.int32)):
        assert torch.equal(made(x, lengths=lengths)[0], want)
    one = made(x[:, 1], lengths=1)[0]
    torch.testing.assert_close(one, want[:, 1], rtol=0, atol=1e-6)
    assert layer(x[:, 1], lengths=1)[0].shape == one.shape
    for wrong in (1.5, "4", torch.tensor([4.0, 1.0, 2.0]), [4, 1, 2.5], [4, 1, True]):
        errors = []
        for module in (layer, made):
            with pytest.raises(TypeError) as error:
                module(x, lengths=wrong)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


def test_wrong_calls():
    """The errors of the layer itself."""
    made = fastrnn.quantize(make("LSTM", 6, 21))
    assert isinstance(made, QuantizedLayer)
    x = torch.randn(4, 3, 6)
    for match, call in {
        "input.size\\(-1\\) must be equal to input_size. Expected 6, got 5": lambda: made(x[..., :5]),
        "2D or 3D, got 1D": lambda: made(x[0, 0]),
        "Expected hidden\\[0\\] size \\(1, 3, 21\\)": lambda: made(x, (torch.zeros(1, 2, 21),) * 2),
        "lengths": lambda: made(x, lengths=torch.tensor([1, 2])),
        "lengths: expected 0 to 4": lambda: made(x, lengths=torch.tensor([1, 2, 5])),
        "one number for each of the 1 rows": lambda: made(x[:, 0], lengths=torch.tensor([1, 2])),
        "belong to padded input": lambda: made(pack_padded_sequence(x, [4, 3, 1]), lengths=[4, 3, 1]),
        "1D or 2D, got 3D": lambda: made.step(x),
        "needs a layer in one direction": lambda: fastrnn.quantize(
            make("GRU", 6, 5, bidirectional=True)
        ).step(x[0]),
    }.items():
        with pytest.raises((RuntimeError, ValueError), match=match):
            call()
    with pytest.raises(ValueError, match="float"):
        made(x.double())
