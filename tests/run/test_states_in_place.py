"""Streamer.step_(), whose state is written in place: an error leaves it as it was."""

from __future__ import annotations

import pytest
import torch
from quantized_cases import make

STREAMS = 7


@pytest.mark.parametrize("active", [None, torch.arange(STREAMS) < 3])
@torch.no_grad()
def test_nothing_is_written_where_something_cannot_be(active):
    """Expanded states and outputs, and an output in the state's memory, are errors that leave all as it was.
    (An h of this step beside the c of the one before would be no state.)"""
    stream, x = make("LSTM", 6, 20, num_layers=2).streamer(), torch.randn(STREAMS, 6)
    h, c = before = (torch.randn(2, STREAMS, 20).tanh(), torch.randn(2, STREAMS, 20))
    h, c, out = h.clone(), c.clone(), torch.full((STREAMS, 20), 7.0)
    row = c[:, :1].clone()
    for match, state, to in (
        (r"hx: .* expanded tensor of shape \(2, 7, 20\)", (h, row.expand(2, STREAMS, 20)), out),
        (r"hx: .* expanded tensor of shape \(2, 7, 20\)", (row.expand(2, STREAMS, 20), c), out),
        (r"out: .* expanded tensor of shape \(7, 20\)", (h, c), row[0].expand(STREAMS, 20)),
        (r"out: .* some of the state's", (h, c), c[0]),
        (r"out: .* some of the state's", (h, c), h[0]),
    ):
        with pytest.raises(ValueError, match=match):
            stream.step_(x, state, out=to, active=active)
        assert torch.equal(h, before[0])
        assert torch.equal(c, before[1])
        assert torch.equal(row, before[1][:, :1])
        assert (out == 7).all()
    if active is None:  # what h becomes is the output
        expected, (end, _) = stream.step(x, before)
        stream.step_(x, (h, c), out=h[-1])
        assert torch.equal(h, end)
        assert torch.equal(h[-1], expected)


@torch.no_grad()
def test_a_first_step_that_fails_leaves_no_state():
    """step_() with the streamer's own state: after an error the next call begins anew, of whichever rows."""
    stream, x = make("GRU", 6, 20).streamer(), torch.randn(STREAMS, 6)
    mask = torch.arange(STREAMS) < 3
    for call in (
        lambda: stream.step_(x[:2, :5], out=torch.empty(2, 20)),
        lambda: stream.step_(x[:2], out=torch.empty(3, 20)),
        lambda: stream.step_(x[:5], out=torch.empty(5, 20), active=mask),
        lambda: stream.step_(x, active=mask),
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            call()
        assert stream.state is None
    stream.step_(x, out=torch.empty(STREAMS, 20), active=mask)
    assert stream.state.shape == (1, STREAMS, 20)
