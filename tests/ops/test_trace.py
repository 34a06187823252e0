"""torch.jit.trace: what is recorded passes torch's check, is saved and loaded, takes other sizes, trains, and
may be called again."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CELLS, LAYERS, flat, randn
from tolerances import TORCH_SLACK, assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.compat import sru as compat_sru

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
IN, H = 4, 6
SRUS = {
    "SRU": lambda: fastrnn.SRU(IN, H),
    "SRU k3": lambda: fastrnn.SRU(H, H, use_tanh=True, rescale=True, layer_norm=True),
    "SRU both": lambda: fastrnn.SRU(IN, 3, bidirectional=True, projection_size=2),
    "SRU large": lambda: fastrnn.SRU(512, 512, 1),  # whose product is oneDNN's
    "compat SRU": lambda: compat_sru.SRU(IN, H, sru_version="2.6.0"),
}


def saved(program: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    stream = io.BytesIO()
    torch.jit.save(program, stream)
    stream.seek(0)
    return torch.jit.load(stream)


def everything(module: nn.Module, inputs: tuple) -> list[Tensor]:
    """Results and every gradient of a call."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    found = flat(module(*leaves))
    total = sum((t * randn(*t.shape, dtype=t.dtype)).sum() for t in found)
    wanted = [t for t in (*leaves, *module.parameters()) if t.requires_grad]
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    return [t.detach() for t in found] + [g for g in grads if g is not None]


def compare(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, b.dtype, slack=TORCH_SLACK[b.dtype])


def traces(module: nn.Module, *batches: tuple) -> torch.jit.ScriptModule:
    """Traces the module with the first batch, gradients on (as tensorboard's add_graph does) and off. Loaded
    again, each program has the module's numbers and gradients for every batch, twice, and without gradients.
    """
    expected = [everything(module, batch) for batch in batches]
    results = [[t.detach() for t in flat(module(*batch))] for batch in batches]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            traced = torch.jit.trace(module, batches[0])  # torch's own check included
        program = saved(traced)
        for _ in range(2):
            for batch, values in zip(batches, expected, strict=True):
                compare(everything(program, batch), values)
        for mode in (torch.no_grad, torch.inference_mode):
            program = saved(traced)
            with mode():
                for _ in range(2):
                    for batch, values in zip(batches, results, strict=True):
                        compare(flat(program(*batch)), values)
    return traced


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str
)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, options):
    """Traced with one row and one step, run with others, with and without states."""
    layer = getattr(fastrnn, name)(IN, H, **options)

    class State(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, *hx):
            return self.layer(x, hx if name == "LSTM" else hx[0])

    traces(layer, (randn(1, 1, IN),), (randn(5, 3, IN),), (randn(3, 5, IN),))
    sizes = (1 if not options.get("bidirectional") else 4, 3, H)
    states = (randn(*sizes), randn(*sizes)) if name == "LSTM" else (randn(*sizes),)
    x = randn(3, 5, IN) if options.get("batch_first") else randn(5, 3, IN)
    traces(State(), (x, *states), (x[:, :2] if options.get("batch_first") else x[:2], *states))


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    """A cell, and a loop of the caller's over one: the list of its weights is the loop's, not a step's."""

    class Loop(nn.Module):
        def __init__(self, cell):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            h, outputs = None, []
            for step in x.unbind(0):
                h = self.cell(step, h)
                outputs.append(h[0] if isinstance(h, tuple) else h)
            return torch.stack(outputs)

    for cell in (getattr(fastrnn, name)(IN, H), getattr(fastrnn.compat, name)(IN, H, bias=False)):
        traces(cell, (randn(1, IN),), (randn(3, IN),))
        traces(Loop(cell), (randn(4, 1, IN),), (randn(4, 3, IN),))


@pytest.mark.parametrize("build", SRUS.values(), ids=SRUS)
def test_sru(build):
    """Traced at one step of one row, where eager inference has a kernel of its own, and run with others."""
    model = build()
    traces(model, (randn(1, 1, model.input_size),), (randn(5, 3, model.input_size),))


def test_srupp():
    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = fastrnn.SRUpp(IN, H, 2, num_heads=2, layer_norm=True)

        def forward(self, x):
            return self.model(x)[:2]

    traces(Outputs(), (randn(2, 1, IN),), (randn(5, 3, IN),))


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("road", ["compat", "convert", "patch", "functional"])
def test_roads(road, save):
    """Every other road to the kernels, with the numbers of torch's own layer."""
    torch.manual_seed(0)
    layer = nn.LSTM(IN, H, 2)
    batches = (randn(1, 1, IN),), (randn(5, 3, IN),)
    expected = [everything(layer, batch) for batch in batches]

    class Functional(nn.LSTM):
        def forward(self, x):
            return fastrnn.functional.lstm(x, None, self._flat_weights, num_layers=2, save=save)

    if road == "patch":
        with fastrnn.patch():
            program = traces(layer, *batches)
    else:
        if road == "functional":
            layer.__class__ = Functional
        else:
            fastrnn.convert(layer, compat=road == "compat", save=save)
        program = traces(layer, *batches)
    assert "fastrnn::rnn_layer" in str(program.inlined_graph)
    for batch, values in zip(batches, expected, strict=True):
        compare(everything(saved(program), batch), values)


@pytest.mark.parametrize("build", [*(getattr(fastrnn, name) for name in LAYERS), fastrnn.SRU, nn.LSTM])
def test_packed(build):
    """A packed batch of other rows and steps than the one it was traced with (pytorch#91351)."""

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = build(IN, H, 2)

        def forward(self, x, lengths):
            y, state = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
            return pad_packed_sequence(y)[0], state

    class Sorted(Packed):
        def forward(self, data, batch_sizes):
            y, state = self.rnn(PackedSequence(data, batch_sizes))
            return y.data, state

    one = randn(5, 3, IN), torch.tensor([2, 5, 1])
    other = randn(7, 6, IN), torch.tensor([2, 5, 1, 7, 7, 3])
    traces(Packed(), one, other)
    traces(Sorted(), (randn(4, IN), torch.tensor([2, 1, 1])), (randn(9, IN), torch.tensor([4, 4, 1])))


def test_srupp_packed():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.SRUpp(IN, H, 2)

        def forward(self, x, lengths):
            y, state, _ = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
            return pad_packed_sequence(y)[0], state

    one = randn(5, 3, IN), torch.tensor([2, 5, 1])
    traces(Packed(), one, (randn(7, 6, IN), torch.tensor([2, 5, 1, 7, 7, 3])))


@pytest.mark.parametrize("name", LAYERS)
def test_lengths_and_resets(name):
    """Lengths, resets, ends and the states of every step stay inputs of the program."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = getattr(fastrnn, name)(IN, H, 2)

        def forward(self, x, lengths, reset, done):
            return self.rnn(x, lengths=lengths, reset=reset, done=done, return_all_states=True)

    def masks(steps, rows):
        generator = torch.Generator().manual_seed(rows)
        return (torch.rand(steps, rows, generator=generator) < 0.3 for _ in range(2))

    one = randn(5, 3, IN), torch.tensor([2, 5, 0]), *masks(5, 3)
    traces(Masked(), one, (randn(7, 4, IN), torch.tensor([2, 5, 1, 7]), *masks(7, 4)))


class Chunks(nn.Module):
    """A sequence in pieces, from state to state."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        outputs, h = [], None
        for chunk in x.chunk(3):
            y, h = self.rnn(chunk, h)
            outputs.append(y)
        return torch.cat(outputs)


class Siamese(Chunks):
    """One layer called twice."""

    def forward(self, x):
        return self.rnn(x)[0] - self.rnn(x * 2)[0]


@pytest.mark.parametrize("model", [Chunks, Siamese])
@pytest.mark.parametrize("name", [*LAYERS, "SRU"])
def test_a_layer_called_more_than_once(name, model):
    """The second call finds its weights, in a frozen program too, where they are constants."""
    module = model(getattr(fastrnn, name)(IN, H))
    traces(module, (randn(6, 1, IN),), (randn(6, 3, IN),))
    module.eval()
    for optimise in (torch.jit.freeze, torch.jit.optimize_for_inference):
        with torch.no_grad():
            program = saved(optimise(torch.jit.trace(module, randn(6, 1, IN))))
            for _ in range(3):
                compare([program(randn(6, 3, IN))], [module(randn(6, 3, IN))])


@pytest.mark.parametrize("name", LAYERS)
def test_streamer(name):
    """A traced streamer, whose packed weights are constants, takes more than one step."""
    stream = getattr(fastrnn, name)(IN, H, 2).streamer()

    class Steps(nn.Module):
        def forward(self, x):
            h, outputs = None, []
            for step in x.unbind(0):
                y, h = stream.step(step, h)
                outputs.append(y)
            return torch.stack(outputs), stream(x)[0]

    x = randn(4, 3, IN)
    with torch.no_grad():
        expected = flat(Steps()(x))
        for program in (torch.jit.trace(Steps().eval(), randn(4, 1, IN)),) * 2:
            for again in (program, saved(program), torch.jit.freeze(program)):
                for _ in range(3):
                    compare(flat(again(x)), expected)


def test_a_fresh_process_trains_it(tmp_path):
    """What imports fastrnn and nothing of the model has the model's numbers and gradients."""
    for name, module in {"LSTM": fastrnn.LSTM(IN, H, 2), "SRU": fastrnn.SRU(IN, H)}.items():
        x = randn(5, 3, IN)
        torch.jit.trace(module.eval(), x).save(tmp_path / f"{name}.pt")
        torch.save((x, [t.clone() for t in everything(module, (x,))]), tmp_path / f"{name}.numbers")
    script = """
import fastrnn, torch
from test_trace import compare, everything
for name in ("LSTM", "SRU"):
    x, expected = torch.load(name + ".numbers")
    program = torch.jit.load(name + ".pt")
    compare(everything(program, (x,)), expected)
    optimiser, losses = torch.optim.SGD(program.parameters(), 0.1), []
    for _ in range(20):
        loss = (program(x)[0] - 0.3).square().mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 1.2, losses
"""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests), *sys.path])
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_second_derivatives_and_saved_values():
    """A program's gradients have gradients, and follow a change of its parameters."""
    layer = fastrnn.LSTM(2, 3, dtype=torch.float64)
    program = torch.jit.trace(layer, randn(2, 1, 2, dtype=torch.float64))
    x = randn(3, 2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: program(x)[0], x)
    with torch.no_grad():
        layer.weight_hh_l0.add_(0.1)
    assert_close(program(x)[0], layer(x)[0], torch.float64)


def test_no_warning_of_ours():
    """Nobody is told of the comparisons in the layers' checks: torch is silent about its own too."""
    code = """
import warnings, torch, fastrnn
with warnings.catch_warnings(record=True) as caught:
    torch.jit.trace(fastrnn.LSTM(4, 6, 2), torch.randn(5, 3, 4))
    torch.jit.trace(fastrnn.SRU(4, 6), torch.randn(5, 3, 4))
assert not [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)], [str(w) for w in caught]
"""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
