"""sLSTM in plain torch: the loop over the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from .._cells import widen
from .._cells.slstm import step
from .linear import after_the_end
from .scan import cuts

__all__ = ["slstm"]


def slstm(
    gx: Tensor,
    weight_hh: Tensor,
    state: tuple[Tensor, ...],
    *,
    lengths=None,
    reset=None,
    reverse: bool = False,
    keep_states: bool = False,
) -> tuple:
    """One direction of an sLSTM.

    Args:
        gx: (T, B, 4*H), the input's part of the gates i, f, z, o, bias included. weight_hh: (4*H, H/heads),
            row g*H + j of unit j's head. state: h, c, n, m (B, H) each.
        lengths: (B,) integers from 0 to T; beyond them the output is 0 and the state stays. reset: (T, B)
            bool, where a new sequence begins from a state of 0. reverse: from the end.

    Returns:
        h (T, B, H), and the last state, in gx's dtype; half types are computed in float32. With
        ``keep_states`` also h, c, n and m of every step, (T, B, H) each, 0 beyond a row's length.
    """
    dtype, hidden = gx.dtype, gx.size(-1) // 4
    gx, weight_hh, state = widen(gx), widen(weight_hh), tuple(map(widen, state))
    blocks = by_head(weight_hh, hidden)
    beyond = None if lengths is None else after_the_end(gx, lengths)
    cut = None if reset is None else cuts(reset, beyond, reverse).unsqueeze(-1)
    if beyond is not None:
        beyond = beyond.unsqueeze(-1)
        gx = gx.masked_fill(beyond, 0)
    found: list = [None] * len(gx)
    gx = gx.unbind(0)  # the gradient of a step taken by its number is as large as all of them
    for t in reversed(range(len(gx))) if reverse else range(len(gx)):
        start = state if cut is None else tuple(s.masked_fill(cut[t], 0) for s in state)
        new = shown = step(gx[t] + product(start[0], blocks), start)
        if beyond is not None:
            new = tuple(torch.where(beyond[t], old, n) for n, old in zip(new, state, strict=True))
            shown = [n.masked_fill(beyond[t], 0) for n in (shown if keep_states else shown[:1])]
        state, found[t] = new, shown
    last = tuple(s.to(dtype) for s in state)
    if not keep_states:
        return torch.stack([shown[0] for shown in found]).to(dtype), last
    every = tuple(torch.stack(s).to(dtype) for s in zip(*found, strict=True))
    return every[0], last, every


def by_head(weight_hh: Tensor, hidden: int) -> Tensor:
    """weight_hh as (heads, H/heads inputs, 4*H/heads rows), for a product a head."""
    heads = hidden // weight_hh.size(1)
    return weight_hh.unflatten(0, (4, heads, -1)).permute(1, 3, 0, 2).flatten(2)


def product(h: Tensor, blocks: Tensor) -> Tensor:
    """The recurrent part of the gates (B, 4*H), of h (B, H) and what ``by_head`` gives."""
    heads = blocks.size(0)
    if heads == 1:
        return h @ blocks[0]
    found = (h.unflatten(-1, (heads, -1)).transpose(0, 1) @ blocks).unflatten(-1, (4, -1))
    return found.permute(1, 2, 0, 3).flatten(1)
