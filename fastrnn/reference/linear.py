"""Recurrences without a product beside SRU's, in plain torch: the linear one, and IndRNN's."""

from __future__ import annotations

import torch
from torch import Tensor

from .._cells import widen
from .scan import cuts

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
    a, b, cut = coefficients(widen(a), widen(b), lengths, reset, reverse)
    return shown(scanned(a, b, h0, cut, reverse), lengths).to(dtype)


def scanned(a: Tensor, b: Tensor, h0: Tensor | None, cut: Tensor | None, reverse: bool) -> Tensor:
    """The states of every step; of a, b and cut as ``coefficients`` gives them."""
    if not len(a):
        return b
    h = torch.zeros_like(b[0]) if h0 is None else widen(h0)
    cut = [None] * len(a) if cut is None else cut.unsqueeze(-1).unbind(0)
    every = list(zip(a.unbind(0), b.unbind(0), cut, strict=True))
    found = []
    for a_t, b_t, cut_t in reversed(every) if reverse else every:
        h = a_t * (h if cut_t is None else h.masked_fill(cut_t, 0)) + b_t
        found.append(h)
    return torch.stack(found[::-1] if reverse else found)


def coefficients(a: Tensor, b: Tensor, lengths, reset, reverse: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """a, b and cut of a scan in which a state passes unchanged through the steps beyond a row's length.

    cut (T, B) is true where a step begins from a state of 0, in the scan's direction, and a is 0 there; None
    for no such step.
    """
    beyond = None if lengths is None else after_the_end(a, lengths)
    cut = None if reset is None else cuts(reset, beyond, reverse)
    if cut is not None:
        a = a.masked_fill(cut.unsqueeze(-1), 0)
    if beyond is not None:
        a, b = a.masked_fill(beyond.unsqueeze(-1), 1), b.masked_fill(beyond.unsqueeze(-1), 0)
    return a, b, cut


def after_the_end(t: Tensor, lengths: Tensor) -> Tensor:
    """(T, B) bool, the steps of t (T, B, .) beyond their rows' lengths."""
    # Not len(t), which for torch.export is the number of today.
    return torch.arange(t.size(0), device=t.device).unsqueeze(1) >= lengths.to(t.device)


def shown(h: Tensor, lengths) -> Tensor:
    """The states of every step with zeros beyond a row's length."""
    return h if lengths is None else h.masked_fill(after_the_end(h, lengths).unsqueeze(-1), 0)


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
    beyond = None if lengths is None else after_the_end(gx, lengths)
    cut = None if reset is None else cuts(reset, beyond, reverse).unsqueeze(-1)
    if beyond is not None:
        beyond = beyond.unsqueeze(-1)
        gx = gx.masked_fill(beyond, 0)
    steps, found = range(len(gx)), [h] * len(gx)
    gx = gx.unbind(0)
    for t in reversed(steps) if reverse else steps:
        start = h if cut is None else h.masked_fill(cut[t], 0)
        new = act(gx[t] + weight * start)
        h = new if beyond is None else torch.where(beyond[t], h, new)
        found[t] = new if beyond is None else new.masked_fill(beyond[t], 0)
    return torch.stack(found).to(dtype), h.to(dtype)
