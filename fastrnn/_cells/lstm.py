"""LSTM: gates i, f, g, o."""

import torch
from torch.nn.functional import layer_norm, linear

from .card import Card, Node


def step(gx, state, w_hh, b_hh=None, w_hr=None):
    h, c = state
    i, f, g, o = (gx + linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else linear(h, w_hr)), c


def gates(variant, own, gx, recur, state):
    _, c = state
    i, f, g, o = (gx + recur(0, 4)).chunk(4, dim=-1)
    if variant.peephole:
        p_i, p_f, p_o = own.weight_peephole.chunk(3)
        i, f = i + p_i * c, f + p_f * c
    i = torch.sigmoid(i)
    f = 1 - i if variant.coupled else torch.sigmoid(f)
    c = f * c + i * torch.tanh(g)
    if variant.peephole:
        o = o + p_o * c
    seen = (
        layer_norm(c, own.norm_c.shape, own.norm_c, own.norm_c_bias, variant.norm_eps) if variant.norm else c
    )
    return torch.sigmoid(o) * torch.tanh(seen), c


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
    gates_of=gates,
    onnx=Node("LSTM", order=(0, 3, 1, 2)),  # i, o, f, c
)
