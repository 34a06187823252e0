"""Calls of a single step, which take the panels of both matrices by turns where the weights are somewhat
larger than a core's cache, and begin where the call before left off: the order changes no bit."""

from __future__ import annotations

import pytest
import torch

import fastrnn
from fastrnn._ops import library


@pytest.fixture
def cache():
    """Sets the second-level cache that calls plan for; what is larger than half of it is taken by turns."""
    before = library.cpu_machine(torch.float32)["l2_bytes"]
    yield lambda size: library.set_cpu_machine(l2_bytes=size)
    library.set_cpu_machine(l2_bytes=before)


def _bits(call, x, hx) -> list[torch.Tensor]:
    found = []
    for _ in range(3):  # to and fro
        y, state = call(x, hx)
        states = state if isinstance(state, tuple) else (state,)
        found.append(torch.cat([t.flatten() for t in (y, *states)]))
    return found


OPTIONS = [{}, {"bias": False}, {"bidirectional": True}, {"proj_size": 40}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.no_grad()
def test_the_order_of_panels_changes_no_bit(isa, threads, cache, name, options, dtype):
    """Of the module, whose weights are read where they lie, packed ahead or just before their use, and of a
    streamer; whole panels and a last one that is not, more panels than are taken together, few and many."""
    if "proj_size" in options and name != "LSTM":
        pytest.skip("a projection is an LSTM's")
    for hidden in (100, 203):
        layer = getattr(fastrnn, name)(150, hidden, dtype=dtype, **options)
        calls = [layer]
        if "bidirectional" not in options and dtype != torch.float64:
            calls.append(layer.streamer())
        for rows in (1, 3, 7):
            x = torch.randn(1, rows, 150, dtype=dtype)
            size = 2 if "bidirectional" in options else 1, rows
            hx = torch.randn(*size, options.get("proj_size", hidden), dtype=dtype)
            if name == "LSTM":
                hx = hx, torch.randn(*size, hidden, dtype=dtype)
            for call in calls:
                for count in (1, 2):
                    threads(count)
                    found = []
                    for size_of_cache in (8 << 20, 512 << 10, 256 << 10):  # one after the other, by turns
                        cache(size_of_cache)
                        found += _bits(call, x, hx)
                    for other in found[1:]:
                        assert torch.equal(found[0], other), (hidden, rows, count)


@torch.no_grad()
def test_layers_by_turns(cache):
    """Several layers, one called twice as often as the other: each call's results are its own."""
    cache(256 << 10)
    first, second = fastrnn.LSTM(150, 203), fastrnn.GRU(203, 100)
    x = torch.randn(5, 1, 1, 150)
    expected = None
    for _ in range(3):
        found, state = [], None
        for step in x:
            y, state = first(step, state)
            found += [y, second(y)[0], second(y)[0]]
        expected = expected or found
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b)
