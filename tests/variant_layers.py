"""Layers with variants for tests of what modules and tools make of them."""

from __future__ import annotations

import torch

import fastrnn

IN, H = 3, 4
EVERYTHING = {"norm": "layer", "zoneout": (0.2, 0.3), "recurrent_dropout": 0.3, "weight_dropout": 0.2}
LAYERS = [
    ("LSTM", {**EVERYTHING, "peephole": True, "coupled": True, "heads": 2}),
    ("LSTM", {"coupled": True}),
    ("GRU", {"reset_after": False, "zoneout": 0.2, "heads": 2}),
    ("RNN", {"norm": "layer", "recurrent_dropout": 0.2}),
]


def build(name: str, variant: dict, **more) -> fastrnn.LSTM:
    torch.manual_seed(0)
    return getattr(fastrnn, name)(IN, H, **more, **variant)


def flat(found) -> list[torch.Tensor]:
    y, hx = found
    return [y, *(hx if isinstance(hx, tuple) else (hx,))]
