"""Models of SRU and SRU++ that the tests share, of two layers in float64 from one seed."""

from __future__ import annotations

import pytest
import torch
from selection import thorough
from torch import nn

import fastrnn

L, B, IN, H = 7, 4, 5, 6
F64 = torch.float64
LENGTHS = torch.tensor([3, 7, 1, 4])
PAD = torch.arange(L)[:, None] >= LENGTHS


def make(*args, kind="SRU", **kwargs):
    torch.manual_seed(0)
    kwargs = {"dtype": F64, **kwargs}
    module = getattr(fastrnn, kind)(IN, H, *args, **kwargs)
    for name, p in module.named_parameters():
        if name.endswith("alpha"):
            nn.init.constant_(p, 0.7)
    return module


MODELS = {
    "SRU": lambda **k: make(**k),
    "SRU bidirectional": lambda **k: make(bidirectional=True, layer_norm=True, **k),
    "SRU k3": lambda **k: make(proj_input_to_hidden_first=True, rescale=True, highway_bias=-1.0, **k),
    "SRU projected": lambda **k: make(projection_size=[3, 2], use_tanh=True, **k),
    "SRUpp": lambda **k: make(4, kind="SRUpp", num_heads=2, **k),
    "SRUpp bidirectional": lambda **k: make(4, kind="SRUpp", bidirectional=True, layer_norm=True, **k),
}
models = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def models_but(*left_out: str):
    """models, of which those named are left to `make test-all`: the others show the same, and faster."""
    chosen = [pytest.param(f, id=n, marks=thorough if n in left_out else ()) for n, f in MODELS.items()]
    return pytest.mark.parametrize("build", chosen)
