"""Padded batches whose rows differ, in plain torch: lengths, and sequences that begin again in mid-row.

The definition of what the masked operators compute; see ``fastrnn.reference`` for the cells themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from .rnn import _make_step, _widen

__all__ = ["masked_layer"]


def masked_layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    cell: str,
    bias: bool,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One layer over a padded batch, one or two directions.

    Row b takes its steps t < lengths[b] alone: beyond them the output and the cell states are zero, and the
    state stays what it was. The reverse direction begins at the row's own last step. Where reset[t, b] is
    true, a new sequence begins at step t: neither direction's state passes between the steps t-1 and t. So
    the forward direction starts from zero there (at step 0 too, which drops h0), and the reverse one at t-1.

    Args:
        x, h0, c0, weights, cell, bias: as for :func:`fastrnn.reference.layer`, without packed rows.
        lengths: (B,) integers from 0 to T, or None: all T.
        reset: (T, B) bool, or None: nowhere.

    Returns:
        y (T, B, D*P), h_n (D, B, P), c_n (D, B, H) or None, all in x's dtype, and the LSTM's c of every step,
        (D, T*B, H), float32 for half types, or None.
    """
    dtype, directions = x.dtype, h0.size(0)
    x, h0, c0 = _widen(x, h0, c0)
    weights = _widen(*weights)
    per_direction = len(weights) // directions
    steps = x.size(0)
    running = cut = None
    if lengths is not None:
        running = torch.arange(steps, device=x.device).unsqueeze(1) < lengths.to(x.device)
        # What is in the padding, NaN too, reaches no gradient.
        x = x.masked_fill(~running.unsqueeze(2), 0)
    if reset is not None:
        cut = reset.to(device=x.device, dtype=torch.bool)

    outputs, states, finals = [], [], []
    for d in range(directions):
        w_ih, w_hh, *rest = weights[d * per_direction : (d + 1) * per_direction]
        b_ih, b_hh = rest[:2] if bias else (None, None)
        w_hr = rest[-1] if len(rest) in (1, 3) else None
        step = _make_step(cell, w_hh, b_hh, w_hr)
        state = (h0[d],) if c0 is None else (h0[d], c0[d])
        gx = linear(x, w_ih, b_ih)
        hs, cs = [None] * steps, [None] * steps
        for t in reversed(range(steps)) if d else range(steps):
            begins = _begins(cut, running, t, reverse=d == 1)
            start = state if begins is None else tuple(s.masked_fill(begins, 0) for s in state)
            new = step(gx[t], start)
            if running is None:
                state = shown = new
            else:
                row = running[t].unsqueeze(1)
                state = tuple(torch.where(row, n, s) for n, s in zip(new, state, strict=True))
                shown = tuple(n.masked_fill(~row, 0) for n in new)
            hs[t], cs[t] = shown[0], shown[-1]
        outputs.append(torch.stack(hs))
        states.append(torch.stack(cs).flatten(0, 1))
        finals.append(state)

    y = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    h_n, *c_n = (torch.stack(s).to(dtype) for s in zip(*finals, strict=True))
    if cell != "lstm":
        return y.to(dtype), h_n, None, None
    return y.to(dtype), h_n, c_n[0], torch.stack(states)


def _begins(cut: Tensor | None, running: Tensor | None, t: int, reverse: bool) -> Tensor | None:
    """(B, 1): the rows whose state does not reach step t from the step taken before it."""
    if cut is None:
        return None
    if not reverse:
        return cut[t].unsqueeze(1)
    if t + 1 == cut.size(0):
        return None
    # A row that begins at t, its last step, begins with its h0.
    begins = cut[t + 1] if running is None else cut[t + 1] & running[t + 1]
    return begins.unsqueeze(1)
