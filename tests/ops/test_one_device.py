"""Every operator of the package wants its tensors on one device.

A tensor on "meta" sends a call to the operator's fake implementation, whatever the others are; its results,
on the CPU, would be whatever lies in their memory."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn._ops import indrnn, library, linear_scan, slstm, torch_layer


class _Calls(TorchDispatchMode):
    """The package's operators that run, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastrnn" and not kwargs:
            present = tuple(bool(isinstance(a, (list, torch.Tensor))) for a in args)
            self.calls.setdefault((func, present), args)
        return func(*args, **(kwargs or {}))


def _layers():
    x = torch.randn(3, 2, 8)
    yield fastrnn.LSTM(8, 8), x, {}
    yield fastrnn.LSTM(8, 8, bidirectional=True), x, {"lengths": [3, 1]}
    yield fastrnn.GRU(8, 8), x, {"reset": torch.ones(3, 2, dtype=torch.bool)}
    yield fastrnn.GRU(8, 8), torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]]), {}
    yield fastrnn.RNN(8, 8), x, {}
    yield fastrnn.SRU(8, 8), x, {}
    yield fastrnn.SRU(8, 8), torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]]), {}
    yield fastrnn.MinGRU(8, 8), x, {"lengths": [3, 1]}
    yield fastrnn.IndRNN(8, 8), x, {"reset": torch.ones(3, 2, dtype=torch.bool)}
    yield fastrnn.SLSTM(8, 8), x, {"lengths": [3, 1]}


def _calls() -> dict:
    found = {}
    for layer, x, options in _layers():
        with _Calls() as seen:
            y = layer(x, **options)[0]
            (y if isinstance(y, torch.Tensor) else y.data).sum().backward()
        found |= seen.calls
    x, h = torch.randn(3, 2, 8), torch.zeros(2, 8)
    with torch.no_grad():
        quantized = fastrnn.quantize(torch.nn.Sequential(fastrnn.LSTM(8, 8)))[0]
        with _Calls() as seen:
            quantized(x)
            quantized(x, lengths=[3, 1])
            weights = list(fastrnn.GRU(8, 8).parameters())
            library.stream(x[0], h[None], None, [library.pack(weights, "gru", True)])
            library.layer(x, h[None], None, weights, None, None, None, "gru", True, False, 0)
            library.sru_step(x[0], torch.randn(24, 8), x[0], torch.randn(16), torch.randn(16), h, True, 1.0)
            linear_scan.scan(x, x, h, None, False)
            indrnn.scan(x, torch.randn(8), h, None, False)
            slstm.run(torch.randn(3, 2, 32), torch.randn(32, 8), h, h, h, h, None, None, False)
            torch_layer.forward(x, h[None], None, weights, None, "gru", True)
        found |= seen.calls
    return found


def _with_one_on_meta(args: tuple):
    for i, argument in enumerate(args):
        if isinstance(argument, torch.Tensor):
            yield f"argument {i}", (*args[:i], argument.to("meta"), *args[i + 1 :])
        elif isinstance(argument, list):
            for k, tensor in enumerate(argument):
                there = [*argument[:k], tensor.to("meta"), *argument[k + 1 :]]
                yield f"argument {i}[{k}]", (*args[:i], there, *args[i + 1 :])


def test_one_tensor_on_another_device():
    """Whichever it is, in every operator that the layers call: an error, and no results."""
    calls = _calls()
    names = {func.name().split("::")[1] for func, _ in calls}
    assert {
        *("rnn_forward", "rnn_backward_unlisted", "rnn_layer", "rnn_stream", "rnn_quantized", "torch_layer"),
        *("sru_forward", "sru_backward", "sru_step", "elementwise_forward", "elementwise_backward"),
        *("slstm_forward", "slstm_backward", "linear_scan", "indrnn", "slstm"),
    } <= names
    for (func, _), args in calls.items():
        with torch.no_grad():
            func(*args)
        for what, changed in _with_one_on_meta(args):
            try:
                with torch.no_grad():
                    found = func(*changed)
            except RuntimeError:
                continue
            # The only tensor that there is: a call on "meta", as its results are.
            found = found if isinstance(found, (tuple, list)) else (found,)
            assert all(t.is_meta for t in found), f"{func}: {what} on meta was taken"
