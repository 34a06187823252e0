"""Whoever looks on at a layer's calls, in inference and in training, sees the operators, also those that went
past the dispatcher before."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest
import torch
from direct_cases import LAYERS
from helpers import HANGS_S
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fastrnn


def test_a_profiler_sees_the_operator():
    """A call is the operator's whenever somebody counts those."""
    module, x = fastrnn.GRU(3, 5), torch.randn(2, 4, 3)
    with torch.no_grad(), torch.profiler.profile() as found:
        module(x)
    assert "fastrnn::rnn_forward" in {event.name for event in found.events()}
    with torch.no_grad(), torch.autograd.profiler.profile() as found:
        module(x)
    assert "fastrnn::rnn_forward" in {event.name for event in found.function_events}


class _Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "options"), LAYERS)
@pytest.mark.parametrize("before", [True, False])
def test_who_looks_on_in_training_sees_the_operators(kind, options, before, tmp_path):
    """A profiler, an observer, a mode, a counter of operations, from the beginning or for the backward pass
    alone; and the gradients are the same whoever looks on."""
    layer, x = kind(3, 5, **options), torch.randn(2, 4, 3, requires_grad=True)
    wanted = [x, *layer.parameters()]
    weights = torch.randn(2, 4, 5 * (1 + layer.bidirectional))  # else the gradient would be an expanded one
    expected = torch.autograd.grad((layer(x)[0] * weights).sum(), wanted)

    def run(y):
        for leaf in wanted:
            leaf.grad = None
        ((layer(x)[0] if y is None else y) * weights).sum().backward()
        for leaf, want in zip(wanted, expected, strict=True):
            torch.testing.assert_close(leaf.grad, want)

    def seen(names):
        names = set(names)
        assert any(name.startswith("fastrnn::rnn_backward") for name in names)
        assert any(name.startswith("fastrnn::rnn_forward") for name in names) == before

    def so_far():
        return None if before else layer(x)[0]

    y = so_far()
    with torch.profiler.profile() as found:
        run(y)
    seen(event.name for event in found.events())
    y = so_far()
    with torch.autograd.profiler.profile() as found:
        run(y)
    seen(event.name for event in found.function_events)
    y, observer = so_far(), torch.profiler.ExecutionTraceObserver()
    observer.register_callback(str(tmp_path / "trace.json"))
    observer.start()
    run(y)
    observer.stop()
    observer.unregister_callback()
    seen(node["name"] for node in json.loads((tmp_path / "trace.json").read_text())["nodes"])
    y = so_far()
    with _Seen() as mode:
        run(y)
    seen(mode.names)
    y = so_far()
    with FlopCounterMode(display=False) as counter:
        run(y)
    assert counter.get_total_flops() > 0
    for looks_on in (_Functions(), torch.device("meta")):
        y = so_far()
        with looks_on:
            run(y)


@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_a_checkpoint_whose_passes_differ(kind, options):
    """A checkpoint compares what both of its passes save. It is the same, whoever looks on at one of them."""
    layer, x = kind(3, 5, **options), torch.randn(2, 4, 3, requires_grad=True)
    wanted = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x)[0].square().sum(), wanted)
    for which in ("first", "second"):
        for looks_on in (torch.profiler.profile, lambda: FlopCounterMode(display=False), _Functions):
            for leaf in wanted:
                leaf.grad = None
            with looks_on() if which == "first" else contextlib.nullcontext():
                y = checkpoint(lambda t: layer(t)[0], x, use_reentrant=False)
            with looks_on() if which == "second" else contextlib.nullcontext():
                y.square().sum().backward()
            for leaf, want in zip(wanted, expected, strict=True):
                torch.testing.assert_close(leaf.grad, want)


@torch.no_grad()
def test_a_profiler_of_all_threads_sees_the_operators():
    """Also those of a thread that began before it."""
    layer, x = fastrnn.GRU(3, 5), torch.randn(2, 4, 3)
    asked, answered = threading.Event(), threading.Event()

    def call():
        asked.wait()
        with torch.no_grad():
            layer(x)
        answered.set()

    thread = threading.Thread(target=call)
    thread.start()
    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], experimental_config=config
    ) as found:
        asked.set()
        answered.wait(HANGS_S)
    thread.join()
    assert "fastrnn::rnn_forward" in {event.name for event in found.events()}


@torch.no_grad()
def test_who_looks_on_in_inference_sees_the_operators(tmp_path):
    """A profiler and an observer of a layer's call."""
    layer, x, name = fastrnn.GRU(3, 5), torch.randn(2, 4, 3), "fastrnn::rnn_forward"
    layer(x)
    with torch.profiler.profile() as found:
        layer(x)
    assert name in {event.name for event in found.events()}
    observer = torch.profiler.ExecutionTraceObserver()
    observer.register_callback(str(tmp_path / "trace.json"))
    observer.start()
    layer(x)
    observer.stop()
    observer.unregister_callback()
    assert name in {node["name"] for node in json.loads((tmp_path / "trace.json").read_text())["nodes"]}
