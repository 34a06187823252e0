"""Streaming: step() of the layers, and layer.streamer() with weights that are packed once."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from helpers import at_once
from streaming_cases import TOLERANCE, close, flat, walk
from torch import nn

import fastrnn

LAYERS = {"LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU, "RNN": fastrnn.RNN}
CASES = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 5, "num_layers": 3}),
    ("LSTM", {"bias": False, "batch_first": True}),
    ("GRU", {"num_layers": 2}),
    ("RNN", {"num_layers": 2, "batch_first": True}),
    ("RNN", {"nonlinearity": "relu", "bias": False}),
]


def make(name="LSTM", inputs=7, hidden=33, dtype=torch.float64, **options):
    torch.manual_seed(3)
    return LAYERS[name](inputs, hidden, **options).to(dtype).eval()


def sequence(layer, steps=6, rows=3, dtype=torch.float64):
    """An input laid out as the layer wants it, a state of the layer's, and the time dimension."""
    x = torch.randn(steps, rows, layer.input_size, dtype=dtype)
    h = torch.randn(layer.num_layers, rows, layer.proj_size or layer.hidden_size, dtype=dtype).tanh()
    c = torch.randn(layer.num_layers, rows, layer.hidden_size, dtype=dtype)
    state = (h, c) if layer.mode == "LSTM" else h
    return (x.transpose(0, 1) if layer.batch_first else x), state, int(layer.batch_first)


# ---- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
@torch.no_grad()
def test_step_by_step_and_in_chunks_equals_the_sequence(isa, name, options):
    """Whatever the cut: forward over all steps, step(), a streamer's step() and its chunks, from a given
    state and from none, batched and for one sequence."""
    layer = make(name, **options)
    x, state, time = sequence(layer)
    stream = layer.streamer()
    for start in (state, None):
        y, last = layer(x, start)
        for step in (layer.step, stream.step):
            got, end = walk(step, x, start, time)
            close(got, y)
            close(end, last)
        outputs, at = [], start
        for chunk in x.split([1, 3, 2], time):
            part, at = stream(chunk, at)
            outputs.append(part)
        close(torch.cat(outputs, time), y)
        close(at, last)
    one, own = x.select(1 - time, 1), tuple(s[:, 1] for s in flat(state))
    own = own if len(own) == 2 else own[0]
    y, last = layer(one, own)
    for step in (layer.step, stream.step):
        got, end = walk(step, one, own, 0)
        close(got, y)
        close(end, last)
    close(stream(one, own)[0], y)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 4, 16])
@torch.no_grad()
def test_streamer_in_every_dtype(isa, dtype, rows):
    """Packed kernels of every dtype (bfloat16 has its own operand on some CPUs), odd and even sizes, few rows
    and more than a tile, against the ordinary kernels."""
    for name, hidden in (("LSTM", 33), ("GRU", 64), ("RNN", 100), ("LSTM", 1)):
        layer = make(name, 19, hidden, dtype, num_layers=2)
        x, state, time = sequence(layer, 5, rows, dtype)
        y, last = layer(x, state)
        stream = layer.streamer()
        got, end = walk(stream.step, x, state, time)
        close(got, y, TOLERANCE[dtype])
        close(end, last, 4 * TOLERANCE[dtype])
        close(stream(x, state)[0], y, TOLERANCE[dtype])


@torch.no_grad()
def test_streamer_on_two_threads():
    """Threads that split the hidden units, as a large layer's step has them, give one thread's numbers."""
    layer = make("LSTM", 200, 260, torch.float32, num_layers=2)
    x, state, _ = sequence(layer, 3, 2, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(layer.streamer()(x, state))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(results[0], results[1], strict=True):
        close(a, b, 1e-6)


def test_step_has_gradients():
    """step() is an ordinary call: gradients of input, state and weights are those of the sequence."""
    layer = make("GRU", num_layers=2).train()
    x, state, time = sequence(layer)
    x.requires_grad_()
    state.requires_grad_()
    wanted = [x, state, *layer.parameters()]
    y, _ = layer(x, state)
    expected = torch.autograd.grad(y.square().sum(), wanted)
    y, _ = walk(layer.step, x, state, time)
    for a, e in zip(torch.autograd.grad(y.square().sum(), wanted), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_no_rows_and_strided_inputs():
    """A batch of none, and inputs and states that are views, give what contiguous ones give."""
    layer = make("LSTM")
    stream = layer.streamer()
    y, (h, c) = stream.step(torch.zeros(0, 7, dtype=torch.float64))
    assert (y.shape, h.shape, c.shape) == ((0, 33), (1, 0, 33), (1, 0, 33))
    _, (h, c), _ = sequence(layer)
    wide = torch.randn(3, 14, dtype=torch.float64)
    strided = wide[:, ::2]
    views = h.repeat(1, 1, 2)[..., :33], c.transpose(0, 1).contiguous().transpose(0, 1)
    close(stream.step(strided, views)[0], stream.step(strided.contiguous(), (h, c))[0], 0)


# ---- whose weights -----------------------------------------------------------------------------------


def test_streamer_keeps_its_weights_and_tells_of_changes():
    """The one rule of a streamer: results come from the weights it took. Every change that torch counts is an
    error until refresh(); writing through .data, which it does not count, changes nothing until then."""

    def assign(layer):
        layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach() + 1)

    def optimise(layer):
        layer(x)[0].sum().backward()
        torch.optim.SGD(layer.parameters(), 0.1).step()

    visible = {
        "in place": lambda m: m.bias_hh_l0.detach().add_(1),
        "optimiser": optimise,
        "replaced": assign,
        "loaded": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
        "dtype": lambda m: m.to(torch.float32),
        "other data": lambda m: setattr(m.weight_hh_l0, "data", torch.zeros_like(m.weight_hh_l0)),
        "drawn anew": lambda m: nn.init.normal_(m.weight_ih_l0),
    }
    x = torch.randn(4, 2, 7, dtype=torch.float64)
    for what, change in visible.items():
        layer = make("LSTM").train()
        stream = layer.streamer()
        with torch.no_grad():
            before = stream(x)[0]
        change(layer)
        with pytest.raises(RuntimeError, match=r"has changed since .*refresh\(\)"):
            stream.step(x[0])
        stream.refresh()
        with torch.no_grad():
            own = x.to(layer.weight_ih_l0.dtype)
            close(stream(own)[0], layer(own)[0], 1e-6)
            assert what == "dtype" or not torch.equal(stream(x)[0], before)

    layer = make("LSTM")
    stream = layer.streamer()
    with torch.no_grad():
        before = stream(x)[0]
        layer.weight_ih_l0.data.mul_(2)
        close(walk(layer.step, x, None, 0)[0], layer(x)[0])  # step() follows
        close(stream(x)[0], before, 0)
        stream.refresh()
        close(stream(x)[0], layer(x)[0])


def test_streamer_of_reparametrized_weights():
    """Weights that are computed are followed back to what they are computed from; hooks, which compute them
    in a call of the layer (old-style weight_norm), are refused."""
    layer = make("GRU")
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    x = torch.randn(3, 2, 7, dtype=torch.float64)
    with torch.no_grad():
        stream = layer.streamer()
        close(stream(x)[0], layer(x)[0])
        layer.parametrizations.weight_hh_l0.original0.mul_(2)
        with pytest.raises(RuntimeError, match="has changed"):
            stream(x)
        stream.refresh()
        close(stream(x)[0], layer(x)[0])
    hooked = make("GRU")
    hooked.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="hooks"):
        hooked.streamer()


@torch.no_grad()
def test_streamer_of_weights_that_are_plain_attributes():
    """Weight drop puts a tensor where the parameter was: another one in its place is seen, as is an edit."""
    layer = make("GRU")
    weight = layer.weight_hh_l0.detach()
    del layer.weight_hh_l0
    layer.weight_hh_l0 = weight * 2
    stream, x, h = layer.streamer(), torch.ones(1, 7).double(), torch.ones(1, 1, 33).double()
    for change in (lambda: setattr(layer, "weight_hh_l0", weight * 3), lambda: layer.weight_hh_l0.mul_(2)):
        close(stream.step(x, h)[0], layer.step(x, h)[0], 1e-12)
        change()
        with pytest.raises(RuntimeError, match="weight_hh_l0 has changed"):
            stream.step(x, h)
        stream.refresh()


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("which", ["all", "one", "parametrized", "attribute"])
def test_streamer_of_weights_without_versions(which, dtype):
    """Of tensors made under inference_mode torch counts no changes. A streamer of a layer that has any such
    weight works, and answers from the weights as they are; moved ones are an error."""
    with torch.inference_mode(which == "all"):
        layer = make("GRU", num_layers=2, dtype=dtype)
    with torch.inference_mode():
        if which == "one":
            layer.weight_hh_l1 = nn.Parameter(layer.weight_hh_l1.clone())
        elif which == "parametrized":
            del layer.weight_hh_l1
            layer.weight_hh_l1 = nn.Parameter(torch.randn(99, 33, dtype=dtype))
            nn.utils.parametrize.register_parametrization(layer, "weight_hh_l1", nn.Tanh(), unsafe=True)
        elif which == "attribute":
            drop = layer.weight_hh_l1 * 2
            del layer.weight_hh_l1
            layer.weight_hh_l1 = drop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = layer.streamer()
    with torch.inference_mode():
        x = torch.randn(4, 2, 7, dtype=dtype)
        for _ in range(2):
            y, h = stream(x)
            close((y, h), layer(x), 1e-5)
            close(walk(stream.step, x, None, 0)[0], y, 1e-5)
            parametrized = which == "parametrized"
            changed = layer.parametrizations.weight_hh_l1.original if parametrized else layer.weight_hh_l1
            changed[3] -= 2.0  # a row alone, nothing else
            assert not torch.allclose(stream(x)[0], y)
        layer.load_state_dict({k: v * 0.5 for k, v in layer.state_dict().items()})
        if which != "all":  # the other weights' changes are counted
            with pytest.raises(RuntimeError, match="weight_ih_l0 has changed"):
                stream(x)
            stream.refresh()
        close(stream(x), layer(x), 1e-5)
        if which == "all":
            layer.bias_ih_l0.data = layer.bias_ih_l0.data.clone()
            with pytest.raises(RuntimeError, match="bias_ih_l0 has changed"):
                stream(x)


def test_copy_of_weights_without_versions():
    """What page and warning name as the way to packed weights: a copy made outside of inference_mode."""
    with torch.inference_mode():
        layer = make("LSTM", dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"deepcopy\(layer\)"):
        layer.streamer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = copy.deepcopy(layer).streamer()
    x = torch.randn(3, 2, 7)
    assert stream._taken.packed
    with torch.no_grad():
        close(stream(x)[0], layer(x)[0], 1e-5)
        stream.layer.weight_hh_l0.mul_(2)
        with pytest.raises(RuntimeError, match="has changed"):
            stream(x)


@torch.no_grad()
def test_copies_and_pickles():
    """A layer that has a streamer is copied and pickled without it; a streamer takes its layer along."""
    layer = make("LSTM")
    x = torch.randn(3, 2, 7, dtype=torch.float64)
    stream = layer.streamer()
    expected = stream(x)[0]
    assert "Streamer(LSTM(7, 33))" in repr(stream)
    for twin in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert twin.layer is not layer
        close(twin(x)[0], expected, 0)
        twin.layer.weight_ih_l0.zero_()
        close(stream(x)[0], expected, 0)
    file = io.BytesIO()
    torch.save(layer, file)
    assert len(file.getvalue()) < 2 * sum(8 * p.numel() for p in layer.parameters())
    close(copy.deepcopy(layer)(x)[0], expected)


@torch.no_grad()
def test_many_threads_on_one_streamer():
    """A streamer has no state of a sequence in it: calls at the same time, with refresh() among them, give
    what each gives alone."""
    layer = make("GRU", 16, 64, torch.float32)
    stream = layer.streamer()
    inputs = [torch.randn(30, 2, 16) for _ in range(4)]
    expected = [layer(x)[0] for x in inputs]

    def work(i):
        with torch.no_grad():
            close(walk(stream.step, inputs[i], None, 0)[0], expected[i], 5e-6)
            stream.refresh()

    at_once(len(inputs), work, times=3)


@torch.no_grad()
def test_streamer_without_packed_kernels():
    """Where nothing is packed (the reference, complex numbers, torch's own layers) a streamer still keeps its
    own weights and gives the layer's numbers."""
    for dtype, backend in (
        (torch.complex128, "auto"),
        (torch.float64, "reference"),
        (torch.float64, "cudnn"),
    ):
        torch.manual_seed(1)
        layer = fastrnn.LSTM(4, 6, dtype=dtype, backend=backend).eval()
        x = torch.randn(3, 2, 4, dtype=dtype)
        stream = layer.streamer()
        y, state = layer(x)
        got, end = walk(stream.step, x, None, 0)
        close(got, y)
        close(end, state)
        layer.weight_ih_l0.data.zero_()
        close(stream(x)[0], y)


def test_modes_of_torch():
    """Autocast changes nothing of a streamer's numbers, packed or not; one made in inference mode serves
    outside of it, and results never require gradients."""
    x = torch.randn(3, 2, 7)
    for backend in ("auto", "reference"):
        layer = make("LSTM", dtype=torch.float32, backend=backend).train()
        with torch.inference_mode():
            stream = layer.streamer()
        with torch.no_grad():
            expected = layer(x)[0]
        y, (h, c) = stream(x)
        assert not any(t.requires_grad for t in (y, h, c))
        close(y, expected, 1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            close(stream(x)[0], expected, 1e-6)


# ---- compile and export ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_step_compiles_and_exports():
    """torch.compile(fullgraph=True) of step(), with gradients, and of a streamer's; its export."""
    torch._dynamo.reset()
    layer = make("LSTM", dtype=torch.float32)
    x, state, _ = sequence(layer, 2, 3, torch.float32)
    compiled = torch.compile(lambda x, s: layer.step(x, s), fullgraph=True, backend="aot_eager")
    y, _ = compiled(x[0], state)
    close(y, layer.step(x[0], state)[0], 1e-6)
    grads = torch.autograd.grad(y.sum(), list(layer.parameters()))
    for g, e in zip(
        grads,
        torch.autograd.grad(layer.step(x[0], state)[0].sum(), list(layer.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(g, e)

    stream = layer.streamer()
    with torch.no_grad():
        compiled = torch.compile(lambda x, s: stream.step(x, s), fullgraph=True, backend="aot_eager")
        got, end = compiled(x[0], state)
        expected, last = stream.step(x[0], state)
        close(got, expected, 0)
        close(end, last, 0)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, h, c):
            return self.layer.step(x, (h, c))

    program = torch.export.export(Step(), (x[0], *state))
    close(program.module()(x[1], *state)[0], layer.step(x[1], state)[0], 1e-6)


# ---- errors ------------------------------------------------------------------------------------------


def test_errors_name_what_is_wrong():
    """Whatever a user can pass wrongly to step() or a streamer gets its own error."""
    both = fastrnn.LSTM(7, 33, bidirectional=True)
    for call in (lambda: both.step(torch.zeros(1, 7)), both.streamer):
        with pytest.raises(RuntimeError, match="one direction, got bidirectional=True"):
            call()
    layer = make("LSTM", dtype=torch.float32)
    stream = layer.streamer()
    x, state = torch.zeros(3, 7), (torch.zeros(1, 3, 33), torch.zeros(1, 3, 33))
    for step in (layer.step, stream.step):
        with pytest.raises(ValueError, match="input of a step to be 1D or 2D, got 3D"):
            step(x[None])
        with pytest.raises(RuntimeError, match="Expected 7, got 8"):
            step(torch.zeros(3, 8))
        with pytest.raises(ValueError, match="does not match weight dtype"):
            step(x.double())
        with pytest.raises(RuntimeError, match="two hidden states"):
            step(x, state[0])
        with pytest.raises(RuntimeError, match="hx and cx should also be 3-D"):
            step(x, (state[0][0], state[1][0]))
        with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 3, 33\)"):
            step(x, (state[0][:, :2], state[1]))
        with pytest.raises(TypeError, match="input should be a Tensor, got a list"):
            step([1.0])
    for other in (nn.LSTM(7, 33), fastrnn.SRU(7, 33), fastrnn.LSTMCell(7, 33), None):
        with pytest.raises(TypeError, match=r"layer should be a fastrnn\.LSTM, GRU or RNN, got"):
            fastrnn.Streamer(other)
    with pytest.raises(RuntimeError, match="found input tensor at meta and parameter tensor at cpu"):
        stream.step(x.to("meta"))
    with pytest.raises(ValueError, match="2D or 3D, got 1D"):
        stream(x[0])
    with pytest.raises(RuntimeError, match="sequence length larger than 0"):
        stream(torch.zeros(0, 3, 7))
    with pytest.raises(RuntimeError, match="no gradients"):
        stream.step(x.clone().requires_grad_(), state)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(lambda x: stream.step(x)[0])(x[None])
