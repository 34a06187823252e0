"""Tools of torch's and others' that look at operators, at weights or at a module's class."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import randn
from torch import nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from fastrnn._checks import tools

IN, H = 4, 6
LAYERS = ("LSTM", "GRU", "RNN")
OPTIONS = (
    {},
    {"num_layers": 2, "bidirectional": True, "bias": False},
    {"proj_size": 3, "bidirectional": True},
)


def _output(result) -> torch.Tensor:
    while not isinstance(result, torch.Tensor):
        result = result[0]
    return result


# ---- FlopCounterMode ------------------------------------------------------------------------------


def _count(module, *args, backward: bool = False, **kwargs) -> int:
    with FlopCounterMode(display=False) as counter:
        y = _output(module(*args, **kwargs))
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", OPTIONS)
def test_flops_of_layers(name, options):
    """Forward and backward count what torch.nn's count: with a gradient for the input, for the state, for
    neither, and for some of the weights only in part. float64, as torch does not see into oneDNN's LSTM."""
    if "proj_size" in options and name != "LSTM":
        return
    theirs, ours = (getattr(ns, name)(IN, H, dtype=torch.float64, **options) for ns in (nn, fastrnn))
    states = (2 if "bidirectional" in options else 1) * options.get("num_layers", 1)
    for of_input in (False, True):
        x = randn(7, 3, IN, dtype=torch.float64).requires_grad_(of_input)
        with torch.no_grad():
            assert _count(ours, x) == _count(theirs, x) > 0
        for backward in (False, True):
            assert _count(ours, x, backward=backward) == _count(theirs, x, backward=backward)
            h = randn(states, 3, options.get("proj_size", H), dtype=torch.float64).requires_grad_()
            hx = (h, randn(states, 3, H, dtype=torch.float64)) if name == "LSTM" else h
            assert _count(ours, x, hx, backward=backward) == _count(theirs, x, hx, backward=backward)
    packed = pack_padded_sequence(x, [7, 4, 4])
    assert _count(ours, packed) == _count(theirs, packed)
    frozen = [copy.requires_grad_(False) for copy in (ours, theirs)]
    assert _count(frozen[0], x, backward=True) == _count(frozen[1], x, backward=True)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_flops_of_cells(name):
    """As torch.nn's cells count, in a step and back through it."""
    theirs, ours = (getattr(ns, name)(IN, H) for ns in (nn, fastrnn))
    x = randn(3, IN)
    for backward in (False, True):
        assert _count(ours, x, backward=backward) == _count(theirs, x, backward=backward) > 0


def test_flops_of_the_others():
    """Masked layers count as padded ones; save="recompute" its second pass; a program of torch.export, and a
    step of SRU by its own kernel, their products."""
    layer, x = fastrnn.GRU(IN, H), randn(7, 3, IN)
    plain = _count(layer, x), _count(layer, x, backward=True)
    lengths = torch.tensor([7, 2, 0])
    assert (_count(layer, x, lengths=lengths), _count(layer, x, lengths=lengths, backward=True)) == plain
    layer.save = "recompute"
    assert (_count(layer, x), _count(layer, x, backward=True)) == (plain[0], plain[1] + plain[0])
    program = torch.export.export(layer, (x,)).module()
    with torch.no_grad():
        assert _count(program, x) == plain[0]
    sru, step = fastrnn.SRU(IN, H), randn(1, 3, IN)
    with torch.no_grad():
        assert _count(sru, step) == _count(sru, step.expand(2, 3, IN)) // 2 > 0


@pytest.mark.parametrize("heads", [1, 4])
def test_flops_of_an_slstm(heads):
    """Its products of the input and of the state, once forward; backward the weights' and the way back. The
    operator in a program of torch.export counts as the layer."""
    layer, x, rows = fastrnn.SLSTM(IN, 8, num_heads=heads), randn(7, 3, IN), 7 * 3
    of_input, of_state = 2 * rows * 32 * IN, 2 * rows * 32 * 8 // heads
    assert _count(layer, x) == of_input + of_state
    assert _count(layer, x, backward=True) == 2 * of_input + 3 * of_state
    program = torch.export.export(layer, (x,)).module()
    with torch.no_grad():
        assert _count(program, x) == of_input + of_state


def test_the_counter_is_not_imported():
    """It takes a quarter of a second, and waits for who wants it; the hook that waits is then gone."""
    script = """
import sys, fastrnn, torch
assert "torch.utils.flop_counter" not in sys.modules
before = len(sys.meta_path)
import importlib.util
assert importlib.util.find_spec("torch.utils.flop_counter").origin.endswith("flop_counter.py")
from torch.utils.flop_counter import FlopCounterMode
assert len(sys.meta_path) == before - 1
import torch.utils.flop_counter as counter
assert counter.__loader__ is counter.__spec__.loader and hasattr(counter.__loader__, "get_source")
assert torch.ops.fastrnn.rnn_forward in counter.flop_registry
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# ---- per-sample gradients ---------------------------------------------------------------------------


def _roads(name: str, **options):
    for road in ("import", "compat", "convert", "patch"):
        module = getattr(fastrnn.compat if road == "compat" else fastrnn if road == "import" else nn, name)
        layer = module(IN, H, **options)
        yield (fastrnn.convert(layer) if road == "convert" else layer), road


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["batch_first", "time_first", "packed"])
def test_per_sample_gradients(name, kind):
    """call_for_per_sample_grads (opacus's grad_sample_mode="ew") gives each row's gradient, on every road."""
    options = {"num_layers": 2, "bidirectional": True, "batch_first": kind == "batch_first"}
    x = randn(5, 3, IN)
    enabled = torch._C._get_mkldnn_enabled()  # on Arm torch itself may have it off
    for layer, road in _roads(name, **options):
        rows = [x[:, b : b + 1] for b in range(3)]
        given = x
        if kind == "packed":
            lengths = [5, 3, 2]
            given = pack_padded_sequence(x, lengths)
            rows = [row[:n] for row, n in zip(rows, lengths, strict=True)]
        elif kind == "batch_first":
            given, rows = x.transpose(0, 1), [row.transpose(0, 1) for row in rows]
        want = [torch.autograd.grad(_output(layer(row)).sum(), list(layer.parameters())) for row in rows]
        with fastrnn.patch() if road == "patch" else contextlib.nullcontext():
            call = call_for_per_sample_grads(layer, batch_size=3, batch_first=kind != "time_first")
            _output(call(given)).sum().backward()
        for i, weight in enumerate(layer.parameters()):
            torch.testing.assert_close(weight.grad_sample, torch.stack([w[i] for w in want]))
    assert torch._C._get_mkldnn_enabled() == enabled


# ---- tools that compare classes -----------------------------------------------------------------------


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.cell, self.head = fastrnn.LSTM(IN, H), fastrnn.GRUCell(H, H), nn.Linear(H, 2)

    def forward(self, x):
        return self.head(self.cell(self.layer(x)[0][-1]))


@pytest.fixture(autouse=True)
def _nobody_warned_yet(monkeypatch):
    monkeypatch.setattr(tools, "_warned", set())


def _quantize(model, *what):
    quantization = pytest.importorskip("torch.ao.quantization")
    return quantization.quantize_dynamic(model, *what)


@pytest.mark.parametrize("what", [(), ({fastrnn.LSTM},), ({fastrnn.GRUCell},)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantize_dynamic(what):
    """It knows classes, and not these: it says so, once, with the class named or not; after revert() it does
    what it does with torch.nn's layers."""
    x = randn(5, 3, IN)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized = _quantize(_Model(), *what)
        _quantize(_Model(), *what)
    said = [w for w in caught if "fastrnn.revert(model)" in str(w.message)]
    assert len(said) == 1
    assert type(quantized.layer) is fastrnn.LSTM
    model = _Model()
    want = model(x)
    quantized = _quantize(fastrnn.revert(model))
    assert "quantized" in type(quantized.layer).__module__
    assert (quantized(x) - want).abs().max() < 0.1


def test_convert_of_a_prepared_model():
    """convert() warns once for each tool that has left its mark on a layer which it will no longer know."""
    for mark, tool in (("qconfig", "torch.ao.quantization"), ("_backpack_extend", "BackPACK")):
        layers = nn.ModuleList([nn.LSTM(IN, H), nn.GRUCell(IN, H), nn.Linear(IN, H)])
        for layer in layers:
            setattr(layer, mark, True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fastrnn.convert(layers)
        assert Counter(tool in str(w.message) for w in caught) == {True: 1}
    unmarked = nn.ModuleList([nn.LSTM(IN, H), nn.GRUCell(IN, H)])
    unmarked[0].qconfig = None  # what a tool leaves where it does nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.convert(unmarked)
