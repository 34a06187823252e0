"""Streams give the same bits however their steps are cut into calls and divided among threads."""

from __future__ import annotations

import pytest
import torch

import fastrnn


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@torch.no_grad()
def test_bits_of_a_step_are_its_own(isa, threads, name):
    """Whether a step is the first or the tenth of a call, and a panel of units the first or the last of a
    thread's: of panels that are computed together, those that are left over give the same bits. Inputs are
    zeros, as a chunk of them is multiplied in tiles of several steps."""
    for hidden in (72, 88, 104, 130, 200):
        layer = getattr(fastrnn, name)(3, hidden)
        stream, x = layer.streamer(), torch.zeros(9, 1, 3)
        hx = torch.randn(1, 1, hidden)
        if name == "LSTM":
            hx = hx, torch.randn(1, 1, hidden)
        found = []
        for count in (1, 2, 3):
            threads(count)
            found.append(stream(x, hx)[0])
            state, steps = hx, []
            for step in x:
                y, state = stream.step(step, state)
                steps.append(y)
            found.append(torch.stack(steps))
        for other in found[1:]:
            assert torch.equal(found[0], other), hidden
