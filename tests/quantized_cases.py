"""What the tests of low-precision weights share: layers, and the kernels' arithmetic written out in torch."""

from __future__ import annotations

import torch
from torch import Tensor

import fastrnn
from fastrnn._ops import quantized

LAYERS = {"LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU, "RNN": fastrnn.RNN}
WEIGHTS = ("bfloat16", "int8")
#: Odd and even sizes, one unit and input, blocks of 16 that are full and not, several layers, both
#: directions.
CASES = [
    ("LSTM", 7, 33, {}),
    ("LSTM", 20, 64, {"num_layers": 2, "bidirectional": True}),
    ("LSTM", 5, 40, {"proj_size": 9, "num_layers": 2, "batch_first": True}),
    ("LSTM", 3, 20, {"proj_size": 17, "bidirectional": True, "bias": False}),
    ("GRU", 1, 1, {}),
    ("GRU", 19, 50, {"num_layers": 2, "bidirectional": True, "bias": False}),
    ("RNN", 6, 100, {"batch_first": True}),
    ("RNN", 33, 16, {"nonlinearity": "relu", "bidirectional": True, "num_layers": 3}),
]


def make(name: str, inputs: int, hidden: int, **options):
    torch.manual_seed(11)
    return LAYERS[name](inputs, hidden, **options).eval()


def quantize_rows(rows: Tensor, weights: str) -> Tensor:
    """The left operand of a product as the kernels take it."""
    if weights == "bfloat16":
        return rows
    largest = rows.abs().amax(-1, keepdim=True)
    scale = largest / 127
    factor = torch.where(largest < 1e-30, 0, 127 / largest)
    return (rows * factor).round() * torch.where(largest < 1e-30, 0, scale)


def run(layer, weights: str, x: Tensor, hx=None) -> tuple:
    """What a quantized layer is to compute of x (T, B, I), written out step by step. Output and states."""
    states, directions = [], 2 if layer.bidirectional else 1
    T, B, _ = x.shape
    lstm = layer.mode == "LSTM"
    for k, names in enumerate(layer._all_weights):
        named = {
            name.rpartition("_l")[0]: quantized.store(
                "", name, getattr(layer, name).detach(), weights
            ).float()
            if getattr(layer, name).dim() == 2
            else getattr(layer, name).detach()
            for name in names
        }
        direction = k % directions
        if direction == 0:
            below, outputs = x, []
        if hx is None:
            h = x.new_zeros(B, layer.proj_size or layer.hidden_size)
            c = x.new_zeros(B, layer.hidden_size)
        else:
            h, c = (hx[0][k], hx[1][k]) if lstm else (hx[k], None)
        ys: list = [None] * T
        for t in reversed(range(T)) if direction else range(T):
            gx = quantize_rows(below[t], weights) @ named["weight_ih"].T
            gh = quantize_rows(h, weights) @ named["weight_hh"].T
            if layer.bias:
                gx, gh = gx + named["bias_ih"], gh + named["bias_hh"]
            if lstm:
                i, f, g, o = (gx + gh).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                if layer.proj_size:
                    h = quantize_rows(h, weights) @ named["weight_hr"].T
            elif layer.mode == "GRU":
                (r, z, n), (hr, hz, hn) = gx.chunk(3, -1), gh.chunk(3, -1)
                r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
                n = (n + r * hn).tanh()
                h = (1 - z) * n + z * h
            else:
                h = (gx + gh).tanh() if layer.mode == "RNN_TANH" else (gx + gh).relu()
            ys[t] = h
        outputs.append(torch.stack(ys))
        states.append((h, c))
        if direction == directions - 1:
            x = torch.cat(outputs, -1)
    h_n = torch.stack([h for h, _ in states])
    return x, (h_n, torch.stack([c for _, c in states])) if lstm else h_n
