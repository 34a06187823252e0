"""speechbrain: its wrappers of torch.nn's layers and cells, traced as its own tests trace them, the models
made of them, and Brain.fit. The examples of its docstrings, which are part of its suite, are installed."""

from __future__ import annotations

import contextlib
import copy
import doctest
import importlib
import io

import pytest
import speechbrain
import torch
from helpers import flat, kernels_called
from speechbrain.lobes.models.CRDNN import CRDNN
from speechbrain.nnet import RNN as wrappers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastrnn

ROADS = ("convert", "patch")
#: That torch.jit is deprecated, and each size that a trace may fix.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")


def _swapped(module: nn.Module, road: str):
    """A copy of the module, and the block in which it runs fastrnn's kernels."""
    module = copy.deepcopy(module)
    if road == "convert":
        fastrnn.convert(module)
    return module, fastrnn.patch() if road == "patch" else contextlib.nullcontext()


def _results(module, *args, **options):
    """Outputs and every gradient."""
    module.zero_grad()
    out = flat(module(*args, **options))
    sum(t.square().sum() for t in out).backward()
    return [t.detach() for t in out], [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_layer(name, bidirectional, road):
    """With and without relative lengths and a first state, in three dimensions and four."""
    for shape in ((5, 9, 12), (5, 9, 4, 3)):
        torch.manual_seed(0)
        theirs = getattr(wrappers, name)(7, shape, num_layers=2, bidirectional=bidirectional)
        x = torch.randn(shape)
        ours, block = _swapped(theirs, road)
        state = torch.randn(2 * (1 + bidirectional), 5, 7)
        with block:
            for hx in (None, (state, state * 0.5) if name == "LSTM" else state):
                for lengths in (None, torch.tensor([0.4, 1.0, 0.7, 0.2, 0.8])):
                    call = {"hx": hx, "lengths": lengths}
                    assert kernels_called(lambda o=ours, v=x, c=call: o(v, **c)) > 0
                    found = _results(ours, x, **call)
                    with contextlib.ExitStack() as outside:
                        if road == "patch":
                            fastrnn.patch.stop()
                            outside.callback(fastrnn.patch.start)
                        assert kernels_called(lambda o=theirs, v=x, c=call: o(v, **c)) == 0
                        expected = _results(theirs, x, **call)
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_traced(name, road):
    """torch.jit.trace(model, x) with gradients on, as speechbrain's tests call it. The program gives the
    module's outputs and gradients, for other sizes too, and can be saved and loaded."""
    torch.manual_seed(0)
    theirs = getattr(wrappers, name)(5, input_size=20, num_layers=2, bidirectional=True)
    ours, block = _swapped(theirs, road)
    with block:
        program = torch.jit.trace(ours, torch.rand(4, 10, 20))
        buffer = io.BytesIO()
        torch.jit.save(program, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for shape in ((4, 10, 20), (3, 17, 20)):
        x = torch.randn(shape)
        expected = _results(theirs, x)
        for traced in (program, loaded):
            assert kernels_called(lambda t=traced, v=x: t(v)) > 0
            torch.testing.assert_close(_results(traced, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("attention", ["content", "location", "keyvalue"])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_attentional_decoder(name, attention, road):
    """A decoder of stacked cells that attends at every step: outputs, attention weights, gradients."""
    torch.manual_seed(0)
    theirs = wrappers.AttentionalRNNDecoder(
        name, attention, 14, 10, 2, 20, 6, nonlinearity="tanh", channels=4, kernel_size=5
    )
    ours, block = _swapped(theirs, road)
    call = (torch.rand(4, 5, 6), torch.rand(4, 10, 20), torch.tensor([1.0, 0.5, 0.8, 0.3]))
    expected = _results(theirs, *call)
    with block:
        assert kernels_called(lambda: ours(*call)) >= 5 * 2  # steps, layers
        torch.testing.assert_close(_results(ours, *call), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["nnet.RNN", "lobes.models.RNNLM", "lobes.models.resepformer", "decoders.seq2seq"]
)
def test_examples(name):
    """The examples of the docstrings hold, and those with torch.nn's layers run fastrnn's kernels."""
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(f"speechbrain.{name}"))
    said = []

    def run():
        with fastrnn.patch():
            for test in tests:
                runner.run(test, out=said.append)

    assert kernels_called(run) > 0
    assert runner.tries > 0
    assert runner.failures == 0, "".join(said)


class Tagger(speechbrain.Brain):
    """Says for each frame whether its features' mean is above that of the frames before it."""

    def compute_forward(self, batch, stage):
        x, lengths, _ = batch
        model = self.modules.model
        return self.modules.head(model(x, lengths) if self.hparams.packed else model(x))

    def compute_objectives(self, predictions, batch, stage):
        x, lengths, tags = batch
        steps = torch.arange(x.shape[1]) < (lengths * x.shape[1]).round()[:, None]
        losses = nn.functional.binary_cross_entropy_with_logits(
            predictions.squeeze(-1), tags, reduction="none"
        )
        return (losses * steps).sum() / steps.sum()


class Packed(nn.Module):
    """speechbrain's LSTM over the frames that are there."""

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.rnn = wrappers.LSTM(hidden, input_size=features, num_layers=2, bidirectional=True, dropout=0.1)

    def forward(self, x, lengths):
        return self.rnn(x, lengths=lengths)[0]


def _fit(library: str, model: str, road: str, epochs: int) -> dict[str, torch.Tensor]:
    rows, steps, features = 64, 40, 20
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, steps, features, generator=generator)
    lengths = torch.rand(rows, generator=generator).mul(0.7).add(0.3)
    lengths[::8] = 1.0  # each batch fills its frames
    mean = x.mean(2)
    tags = (mean > mean.cumsum(1) / torch.arange(1, steps + 1)).float()
    torch.manual_seed(0)
    if model == "CRDNN":
        network = CRDNN(
            input_shape=(8, steps, features),
            cnn_blocks=1,
            cnn_channels=[4],
            cnn_kernelsize=(3, 3),
            rnn_class=wrappers.GRU,
            rnn_layers=2,
            rnn_neurons=32,
            rnn_bidirectional=True,
            dnn_blocks=1,
            dnn_neurons=32,
        )
    else:
        network = Packed(features, 32)
    modules = nn.ModuleDict({"model": network, "head": nn.Linear(32 if model == "CRDNN" else 64, 1)})
    if library == "fastrnn" and road == "convert":
        fastrnn.convert(modules)
    brain = Tagger(
        modules,
        # Not Adam: before a batch normalization a bias has no gradient but rounding's, which Adam makes whole
        # steps of.
        opt_class=lambda parameters: torch.optim.SGD(parameters, lr=0.2, momentum=0.9),
        hparams={"packed": model == "LSTM"},
        run_opts={"device": "cpu", "max_grad_norm": 1.0},
    )
    with fastrnn.patch() if library == "fastrnn" and road == "patch" else contextlib.nullcontext():
        loader = DataLoader(TensorDataset(x, lengths, tags), batch_size=8)
        brain.fit(range(epochs), loader, progressbar=False)
        loss = torch.tensor(brain.evaluate(loader, progressbar=False))
    return {"loss": loss, **{name: p.detach() for name, p in brain.modules.named_parameters()}}


@pytest.mark.parametrize(("model", "road"), [("LSTM", "patch"), ("CRDNN", "convert")])
def test_brain(compare, model, road):
    """The same weights after Brain.fit, and the same loss from Brain.evaluate."""
    what = "packed LSTM" if model == "LSTM" else "CRDNN with GRU"
    compare(
        "speechbrain",
        f"Brain.fit, {what}, H=32, 2 layers, 2 directions",
        road,
        lambda library, epochs: _fit(library, model, road, epochs),
        short=1,
        full=3,
        limit=1e-3,
    )
