"""What a device without kernels gets: torch's own layers where torch has them, else the reference.

Run by test_other_devices.py in a process of its own, since an accelerator cannot be taken back.
"""

from __future__ import annotations

import pytest
import torch
import toy_device
from helpers import CELLS, LAYERS, flat, pair, randn, results
from tolerances import TORCH_SLACK, assert_close
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from toy_device import ToyTensor, to_cpu, to_toy

import fastrnn
from fastrnn import explain, functional, reference
from fastrnn._run import native

IN, H = 4, 6
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "dropout": 0.4},
]
CASES = [(n, o) for n in LAYERS for o in OPTIONS] + [
    ("LSTM", {"proj_size": 2, "num_layers": 2}),
    ("RNN", {"nonlinearity": "relu"}),
]


@pytest.fixture(autouse=True)
def _device():
    with toy_device.Factories():
        yield


@pytest.fixture
def calls(monkeypatch):
    """What each call of torch's own layers and cells and of the reference was given."""
    found = {"torch": [], "reference": []}

    def spied(kind, function):
        def call(*args, **kwargs):
            found[kind].append(args)
            return function(*args, **kwargs)

        return call

    for table in (native._LAYERS, native._CELLS):
        for name, function in list(table.items()):
            monkeypatch.setitem(table, name, spied("torch", function))
    monkeypatch.setattr(reference, "layer", spied("reference", reference.layer))
    return found


def _inputs(name, options, seed=1):
    shape = (3, IN) if name in CELLS else (3, 5, IN) if options.get("batch_first") else (5, 3, IN)
    states = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    lead = (3,) if name in CELLS else (states, 3)
    h = randn(*lead, options.get("proj_size", H), seed=seed + 1)
    return randn(*shape, seed=seed), ((h, randn(*lead, H, seed=seed + 2)) if "LSTM" in name else h)


def _compare(ours, theirs, x, hx):
    """Every result of ours, on the device, against theirs on the CPU. Outputs have random gradients."""
    torch.manual_seed(3)
    expected = results(theirs, x, hx)
    torch.manual_seed(3)
    got = _toy_results(ours, x, hx)
    assert got.keys() == expected.keys()
    for label, value in expected.items():
        gradient = label.startswith("grad")
        assert_close(
            got[label], value, torch.float32, gradient=gradient, what=label, slack=TORCH_SLACK[torch.float32]
        )


def _toy_results(module, x, hx):
    """helpers.results on the device, its numbers brought back."""

    def leaf(value):
        if isinstance(value, PackedSequence):
            return PackedSequence(leaf(value.data), *value[1:])
        if isinstance(value, tuple):
            return tuple(map(leaf, value))
        return to_toy(value).requires_grad_()

    given, state = leaf(x), None if hx is None else leaf(hx)
    out = flat(module(given) if state is None else module(given, state))
    assert all(isinstance(t, ToyTensor) for t in out)
    torch.autograd.backward(out, [to_toy(randn(*t.shape, seed=7 + i).to(t.dtype)) for i, t in enumerate(out)])
    found = dict(zip(("y", "h", "c"), out, strict=False))
    found["grad x"] = (given.data if isinstance(given, PackedSequence) else given).grad
    for label, t in zip(("h0", "c0"), () if state is None else flat(state), strict=False):
        found[f"grad {label}"] = t.grad
    for label, w in module.named_parameters():
        found[f"grad {label}"] = w.grad
    return {label: to_cpu(t.detach()) for label, t in found.items()}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("name", "options"), [*CASES, *((n, {}) for n in CELLS), ("GRUCell", {"bias": False})]
)
def test_torchs_own_layer(name, options, given, calls):
    """Protects the speed on other makers' GPUs: one call of torch's layer, with its results, every gradient
    and its dropout, in place of a dozen operations a step."""
    ours, theirs = pair(name, IN, H, **options)
    x, hx = _inputs(name, options)
    _compare(to_toy(ours), theirs, x, hx if given else None)
    assert len(calls["torch"]) == 1
    assert not calls["reference"]


@pytest.mark.parametrize("name", LAYERS)
def test_packed(name, calls):
    """Packed batches too."""
    ours, theirs = pair(name, IN, H, num_layers=2, bidirectional=True)
    packed = pack_sequence([randn(n, IN, seed=n) for n in (2, 5, 3)], enforce_sorted=False)
    _compare(to_toy(ours), theirs, packed, None)
    assert calls["torch"]
    assert not calls["reference"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell", "GRUCell"])
def test_half_types(name, dtype, calls):
    """Where torch raises for want of a kernel (float16 on the toy), the reference computes, gradients
    included."""
    ours, theirs = pair(name, IN, H, dtype=dtype)
    x, _ = _inputs(name, {})
    exact = results(theirs.float(), x.to(dtype).float())
    got = _toy_results(to_toy(ours), x.to(dtype), None)
    assert bool(calls["reference"]) == (dtype == torch.float16)
    for label, value in exact.items():
        gradient, slack = label.startswith("grad"), 1.0 if calls["reference"] else TORCH_SLACK[dtype]
        assert got[label].dtype == dtype
        assert_close(got[label], value, dtype, gradient=gradient, slack=slack, what=label)


@pytest.mark.parametrize("name", LAYERS)
def test_what_torch_has_not(name, calls):
    """Lengths, resets and the states of every step come from the reference's steps."""
    ours, _ = pair(name, IN, H)
    x, _ = _inputs(name, {})
    lengths, reset = torch.tensor([5, 2, 4]), randn(5, 3) > 0.5
    want = ours(x, lengths=lengths, reset=reset, return_all_states=True)
    to_toy(ours)
    got = ours(to_toy(x), lengths=lengths, reset=to_toy(reset), return_all_states=True)
    for g, w in zip(flat(got), flat(want), strict=True):
        assert_close(to_cpu(g), w, torch.float32)
    assert not calls["torch"]


def test_gradients_in_eval_mode(calls):
    """cuDNN and MIOpen have gradients in training mode alone: asked for in eval mode, the layer is called as
    in training and without its dropout, and in inference as it is."""
    ours, theirs = (m.eval() for m in pair("LSTM", IN, H, num_layers=2, dropout=0.5))
    x, hx = _inputs("LSTM", {"num_layers": 2})
    _compare(to_toy(ours), theirs, x, hx)
    *_, dropout, training, _, _ = calls["torch"].pop()
    assert (dropout, training) == (0.0, True)
    with torch.no_grad():
        ours(to_toy(x))
    *_, training, _, _ = calls["torch"].pop()
    assert training is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_autocast(name, dtype, calls):
    """The dtypes of torch's own modules on the device wherever they answer, else an answer all the same."""
    ours, theirs = (to_toy(m) for m in pair(name, IN, H))
    x, hx = _inputs(name, {})
    exact = [to_cpu(t) for t in flat(theirs(to_toy(x), to_toy(hx)))]
    with torch.autocast("toy", dtype=dtype):
        got = flat(ours(to_toy(x), to_toy(hx)))
        try:
            expected = [t.dtype for t in flat(theirs(to_toy(x), to_toy(hx)))]
        except RuntimeError:
            expected = [dtype] * len(got)
    assert [t.dtype for t in got] == expected
    assert not (calls["reference"] and dtype == torch.bfloat16)
    for g, e in zip(got, exact, strict=True):
        assert_close(to_cpu(g), e, dtype, slack=2.0)


def test_errors_are_ours():
    """Arguments are checked before torch sees them, kernels that were asked for are an error, and a device
    that is out of memory is not asked for more of it."""
    ours = to_toy(fastrnn.GRU(IN, H))
    x = to_toy(randn(5, 3, IN))
    with pytest.raises(RuntimeError, match="not the same dtype"):
        ours(x, to_toy(torch.zeros(1, 3, H, dtype=torch.float64)))
    with pytest.raises(RuntimeError, match="not at the same device"):
        ours(x, torch.zeros(1, 3, H))
    weights = list(ours.parameters())
    for autocast in (False, True):
        with (
            torch.autocast("toy", dtype=torch.bfloat16, enabled=autocast),
            pytest.raises(RuntimeError, match="batch_sizes should add up"),
        ):
            functional.gru(to_toy(randn(5, IN)), None, weights, batch_sizes=torch.tensor([3, 1]))
    with pytest.raises(RuntimeError, match=r"backend='fused': no kernel covers torch\.float32 on toy:0"):
        to_toy(fastrnn.GRU(IN, H, backend="fused"))(x)
    with pytest.raises(RuntimeError, match="backend='fused'"):
        functional.gru_cell(to_toy(randn(3, IN)), None, *weights, backend="fused")


def test_out_of_memory(monkeypatch):
    """Not hidden by a second try with more operations."""

    def full(*_):
        raise torch.OutOfMemoryError("the toy is full")

    monkeypatch.setitem(toy_device._KERNELS, torch.ops.aten._thnn_fused_gru_cell.default, full)
    with pytest.raises(torch.OutOfMemoryError, match="the toy is full"):
        to_toy(fastrnn.GRU(IN, H))(to_toy(randn(5, 3, IN)))


def test_explain_says_so(calls):
    """The plan of a module on the device names what will run it."""
    module = to_toy(fastrnn.LSTM(IN, H, num_layers=2))
    found = explain(module, (5, 3))
    assert (found.device, found.kernels) == ("toy", ["cudnn"] * 2)
    module(to_toy(randn(5, 3, IN)))
    assert calls["torch"]
    assert explain(to_toy(fastrnn.SRU(IN, H)), (5, 3)).kernels == ["reference"] * 2
    assert explain(to_toy(fastrnn.GRUCell(IN, H))).kernels == ["cudnn"]


def test_the_rest_of_the_package():
    """Steps, streamers, patch() and the SRU work on the device as well."""
    ours, theirs = pair("GRU", IN, H, num_layers=2)
    x = randn(5, 3, IN)
    with torch.no_grad():
        want, _ = theirs(x)
        to_toy(ours)
        streamer, steps, chunks, h, s = ours.streamer(), [], [], None, None
        for t in range(5):
            y, h = ours.step(to_toy(x[t]), h)
            steps.append(to_cpu(y))
            y, s = streamer.step(to_toy(x[t]), s)
            chunks.append(to_cpu(y))
        assert_close(torch.stack(steps), want, torch.float32)
        assert_close(torch.stack(chunks), want, torch.float32)
        to_toy(theirs)
        with fastrnn.patch():
            assert_close(to_cpu(theirs(to_toy(x))[0]), want, torch.float32)
        sru = fastrnn.SRU(IN, H)
        want, _ = sru(x)
        assert_close(to_cpu(to_toy(sru)(to_toy(x))[0]), want, torch.float32)


def test_plain_modules_too():
    """The toy itself is right: torch.nn on it and on the CPU agree."""
    for name in LAYERS:
        theirs = getattr(nn, name)(IN, H)
        x = randn(5, 3, IN)
        want = results(theirs, x)
        for label, value in _toy_results(to_toy(theirs), x, None).items():
            gradient = label.startswith("grad")
            assert_close(value, want[label], torch.float32, gradient=gradient, slack=2.0, what=label)
