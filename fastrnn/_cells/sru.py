"""SRU: an elementwise recurrence of candidate, forget gate and reset gate, whose products come from outside.

The equations are in ``fastrnn.reference.sru_scan``.
"""

import torch

from .card import Card


def step(candidate, gates, weight, skip, drop, pad, c, use_tanh):
    """One step: gates and weight (B, 2, H) or weight (2, H), pad (B, 1), the rest (B, H). Returns h and c."""
    f, r = torch.sigmoid(gates + weight * c.unsqueeze(-2)).unbind(-2)
    new = candidate + (c - candidate) * f
    if pad is not None:
        new = torch.where(pad, c, new)
    output = torch.tanh(new) if use_tanh else new
    difference = output if skip is None else output - skip
    if drop is not None:
        difference = difference * drop
    h = difference * r if skip is None else skip + difference * r
    return (h if pad is None else h.masked_fill(pad, 0)), new


CARD = Card("sru", None, "scan", gates=3, saved=0, has_cell=True, split=False, carries=1)
