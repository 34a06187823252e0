"""LSTM: gates i, f, g, o."""

import torch
from torch.nn.functional import linear

from .card import Card, Node


def step(gx, state, w_hh, b_hh=None, w_hr=None):
    h, c = state
    i, f, g, o = (gx + linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else linear(h, w_hr)), c


CARD = Card(
    "lstm",
    "LSTM",
    "rnn",
    gates=4,
    saved=4,
    has_cell=True,
    split=False,
    projects=True,
    carries=1,
    onednn=True,
    step=step,
    onnx=Node("LSTM", order=(0, 3, 1, 2)),  # i, o, f, c
)
