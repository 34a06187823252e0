"""sLSTM of the xLSTM paper (Beck et al., 2024): exponential gates i, f and z, o, a normaliser n and a
stabiliser m."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def step(pre: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(h, c, n, m) after a step, of pre-activations (B, 4*H) and the state before it.

    m is the logarithm by which c and n are scaled down, so that no exponential overflows; of a new sequence,
    whose n is 0, it is i's own.
    """
    _, c, n, m = state
    i, f, z, o = pre.chunk(4, dim=-1)
    kept = m + logsigmoid(f)
    new_m = torch.where(n == 0, i, torch.maximum(i, kept))
    # Before the exponential: where a new sequence begins, kept may be anything.
    entering = torch.exp((i - new_m).clamp(max=0))
    staying = torch.exp((kept - new_m).clamp(max=0))
    c = staying * c + entering * torch.tanh(z)
    n = staying * n + entering
    return torch.sigmoid(o) * c / n, c, n, new_m
