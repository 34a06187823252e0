"""A single step of a cell: a layer of one step, with what torch's cells allow beside (one row, one bias)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._cells import RNN
from .._ops import autograd, torch_state
from .._ops.torch_state import autocasting
from .._plan import route
from . import native
from .rnn import autocast_inputs, runner


def one_step(name, cell, input, hx, w_ih, w_hh, b_ih, b_hh, backend="auto"):
    """One step. Returns h and, for the LSTM, c. It takes microseconds, and so must what comes before it."""
    x, h, c = _checks.tensor(name, "input", input), None, None
    if x.layout is not torch.strided or x.is_nested:
        x = _checks.dense(name, x)
    if backend != "auto":
        _checks.one_of(name, "backend", backend, _checks.BACKENDS)
    if hx is not None:
        h, c = _checks.pair(name, hx) if RNN[cell].has_cell else (_checks.tensor(name, "hidden", hx), None)
    batched = x.dim() == 2
    if not batched or (h is not None and (h.dim() != 2 or (c is not None and c.dim() != 2))):
        _checks.cell_dims(name, x, h, c)
    if not batched:
        x = x.unsqueeze(0)
        h, c = (None if s is None else s.unsqueeze(0) for s in (h, c))

    rows, features = x.shape
    try:
        input_size, hidden_size = w_ih.size(1), w_hh.size(1)
    except (AttributeError, IndexError):
        _checks.cell_weights(name, (w_ih, w_hh, b_ih, b_hh))
        raise
    if features != input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {features} expected {input_size}")
    if h is not None:
        expected = (rows, hidden_size)
        if h.shape != expected:
            _checks.cell_state(h, expected, 0)
        if c is not None and c.shape != expected:
            _checks.cell_state(c, expected, 1)

    if isinstance(b_ih, Tensor) and isinstance(b_hh, Tensor):
        weights = [w_ih, w_hh, b_ih, b_hh]
    elif b_ih is b_hh:
        weights = [w_ih, w_hh]
    else:
        # torch allows one bias alone.
        _checks.cell_weights(name, (w_ih, w_hh, b_ih, b_hh))
        other = w_ih.new_zeros(w_ih.size(0))
        weights = [w_ih, w_hh, other if b_ih is None else b_ih, other if b_hh is None else b_hh]
    # torch lets cells have no inputs or no units; there is nothing to fuse in those.
    way = route.of(x, backend, empty=not (features and hidden_size))
    if way.asked:  # autocast included
        h, c = native.cell(cell, x, h, c, weights)
    elif autocasting(x):
        found = None
        if way.runner == "native" and not x.is_cpu and not torch_state.compiling():
            found = native.cell_instead(cell, x, h, c, weights)
        if found is None:
            x, h, c, weights, _ = autocast_inputs(cell, False, True, x, h, c, weights)
            with torch.autocast(x.device.type, enabled=False):
                found = _layer_step(name, way, cell, x, h, c, weights)
        h, c = found
    else:
        h, c = _layer_step(name, way, cell, x, h, c, weights)
    if batched:
        return h, c
    return h.squeeze(0), (None if c is None else c.squeeze(0))


def _layer_step(name, way, cell, x, h, c, weights):
    """A cell is a layer of one step. h and c are (B, H) or None for zeros."""
    if way.runner == "none":
        raise RuntimeError(way.why)
    rows, hidden_size = x.size(0), weights[1].size(1)
    layer = runner(way)
    if way.runner != "fused":
        _checks.cell_params(name, cell, weights, hidden_size)
        _checks.same_kind(x, [("hidden", h), ("cell", c), *(("parameter", w) for w in weights)])
        found = None
        if way.runner == "native" and not torch_state.compiling():
            found = native.cell_instead(cell, x, h, c, weights)
        if found is not None:
            return found
    dtype, device = x.dtype, x.device
    for t in (h, c, *weights):
        if t is not None and (t.dtype != dtype or t.device != device):
            _checks.same_kind(x, [("hidden", h), ("cell", c), *(("parameter", w) for w in weights)])
    bias = len(weights) == 4
    if h is None:
        h = x.new_zeros((rows, hidden_size))
        if RNN[cell].has_cell:
            c = torch.zeros_like(h) if torch_state.compiling() else h
    if (
        layer is autograd.layer
        and x.is_cpu
        and torch_state.gradients()
        and any(t is not None and t.requires_grad for t in (x, h, c, *weights))
        and not _written_down()
    ):
        return autograd.step(x, h, c, weights, cell=cell, bias=bias)
    h, c = h.unsqueeze(0), (None if c is None else c.unsqueeze(0))
    _, h, c = layer(x.unsqueeze(0), h, c, weights, cell=cell, bias=bias)
    return h.squeeze(0), (None if c is None else c.squeeze(0))


def _written_down() -> bool:
    """Whether a compiler or a tracer reads along, which are to find in a cell what they find in a layer."""
    return torch_state.compiling() or torch_state.exporting() or torch_state.tracing() is not None
