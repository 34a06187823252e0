"""MinGRU and MinLSTM: gates of the input alone, so that h_t = a_t * h_{t-1} + b_t.

Feng et al., "Were RNNs All We Needed?" (2024). In the log-space form the candidate is positive, g(v) = v +
0.5 from 0 on and sigmoid(v) below.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def positive(v: Tensor) -> Tensor:
    """The candidate of the log-space form."""
    return torch.where(v >= 0, v + 0.5, torch.sigmoid(v))


def mingru(gates: Tensor, log_space: bool) -> tuple[Tensor, Tensor]:
    """a = 1 - z and b = z * candidate, of gates (..., 2*H), z and candidate."""
    z, candidate = gates.chunk(2, dim=-1)
    if log_space:
        candidate = positive(candidate)
    return torch.sigmoid(-z), torch.sigmoid(z) * candidate


def minlstm(gates: Tensor, log_space: bool) -> tuple[Tensor, Tensor]:
    """a = f / (f + i) and b = i / (f + i) * candidate, of gates (..., 3*H), f, i and candidate."""
    f, i, candidate = gates.chunk(3, dim=-1)
    if log_space:
        candidate = positive(candidate)
    share = logsigmoid(f) - logsigmoid(i)  # no quotient, which of small f and i would be 0 / 0
    return torch.sigmoid(share), torch.sigmoid(-share) * candidate
