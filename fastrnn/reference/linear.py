"""Recurrences without a product beside SRU's, in plain torch: the linear one, and IndRNN's."""

from __future__ import annotations

import torch
from torch import Tensor

from .._cells import widen

__all__ = ["indrnn", "linear_scan"]


def linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None = None, *, lengths=None, reset=None, reverse: bool = False
) -> Tensor:
    """h_t = a_t * h_{t-1} + b_t, step by step.

    Args:
        a, b: (T, B, H). h0: (B, H), zeros by default.
        lengths: (B,) integers from 0 to T; the steps beyond give 0. reset: (T, B) bool, where h_{t-1} is 0.
        reverse: from the end; then h_{t+1} is what h_t is made of, and it is 0 where reset[t+1].

    Returns:
        h (T, B, H) in a's dtype; half types are computed in float32.
    """
    dtype = a.dtype
    a, b = coefficients(widen(a), widen(b), lengths, reset, reverse)
    h = torch.zeros_like(b[0]) if h0 is None else widen(h0)
    steps, found = range(len(a)), [h] * len(a)
    for t in reversed(steps) if reverse else steps:
        found[t] = h = a[t] * h + b[t]
    return shown(torch.stack(found), lengths).to(dtype)


def coefficients(a: Tensor, b: Tensor, lengths, reset, reverse: bool) -> tuple[Tensor, Tensor]:
    """a and b of a scan in which a state passes unchanged through the steps beyond a row's length, and does
    not pass where a new sequence begins."""
    beyond = None
    if lengths is not None:
        beyond = torch.arange(len(a), device=a.device).unsqueeze(1) >= lengths.to(a.device)
    if reset is not None:
        cut = reset.bool() if beyond is None else reset.bool() & ~beyond
        if reverse:
            cut = torch.cat([cut[1:], torch.zeros_like(cut[:1])])
        a = a.masked_fill(cut.unsqueeze(-1), 0)
    if beyond is not None:
        a, b = a.masked_fill(beyond.unsqueeze(-1), 1), b.masked_fill(beyond.unsqueeze(-1), 0)
    return a, b


def shown(h: Tensor, lengths) -> Tensor:
    """The states of every step with zeros beyond a row's length."""
    if lengths is None:
        return h
    beyond = torch.arange(len(h), device=h.device).unsqueeze(1) >= lengths.to(h.device)
    return h.masked_fill(beyond.unsqueeze(-1), 0)


def indrnn(
    gx: Tensor,
    weight: Tensor,
    h0: Tensor,
    *,
    relu: bool = False,
    lengths=None,
    reset=None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """h_t = act(gx_t + weight * h_{t-1}), Li et al. (2018). gx (T, B, H), weight (H,), h0 (B, H).

    lengths, reset and reverse are :func:`linear_scan`'s. Returns h (T, B, H), and the last state (B, H).
    """
    dtype, act = gx.dtype, torch.relu if relu else torch.tanh
    gx, weight, h = widen(gx), widen(weight), widen(h0)
    beyond = None
    if lengths is not None:
        beyond = (torch.arange(len(gx), device=gx.device).unsqueeze(1) >= lengths.to(gx.device)).unsqueeze(-1)
        gx = gx.masked_fill(beyond, 0)
    cut = None if reset is None else reset.bool().unsqueeze(-1)
    if cut is not None and beyond is not None:
        cut = cut & ~beyond
    if cut is not None and reverse:
        cut = torch.cat([cut[1:], torch.zeros_like(cut[:1])])
    steps, found = range(len(gx)), [h] * len(gx)
    for t in reversed(steps) if reverse else steps:
        start = h if cut is None else h.masked_fill(cut[t], 0)
        new = act(gx[t] + weight * start)
        h = new if beyond is None else torch.where(beyond[t], h, new)
        found[t] = new if beyond is None else new.masked_fill(beyond[t], 0)
    return torch.stack(found).to(dtype), h.to(dtype)
