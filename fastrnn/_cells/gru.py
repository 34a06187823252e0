"""GRU: gates r, z, n, with the reset gate applied after the recurrent product, or as a variant before it."""

import torch
from torch.nn.functional import linear

from .card import Card, Node


def step(gx, state, w_hh, b_hh=None, w_hr=None):
    (h,) = state
    x_r, x_z, x_n = gx.chunk(3, dim=-1)
    h_r, h_z, h_n = linear(h, w_hh, b_hh).chunk(3, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * h,)


def gates(variant, own, gx, recur, state):
    (h,) = state
    x_r, x_z, x_n = gx.chunk(3, dim=-1)
    if variant.reset_after:
        h_r, h_z, h_n = recur(0, 3).chunk(3, dim=-1)
        r = torch.sigmoid(x_r + h_r)
        n = torch.tanh(x_n + r * h_n)
    else:
        h_r, h_z = recur(0, 2).chunk(2, dim=-1)
        r = torch.sigmoid(x_r + h_r)
        n = torch.tanh(x_n + recur(2, 3, r))
    z = torch.sigmoid(x_z + h_z)
    return ((1 - z) * n + z * h,)


CARD = Card(
    "gru",
    "GRU",
    "rnn",
    gates=3,
    saved=4,
    has_cell=False,
    split=True,
    carries=0,
    step=step,
    gates_of=gates,
    onnx=Node("GRU", order=(1, 0, 2), attributes={"linear_before_reset": 1}),  # z, r, h
)
