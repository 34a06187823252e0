"""The activations of small layers, csrc/cpu/simd/quick_math.h: through layers that are one activation of
their input, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from stream.runtime import load, steps_of
from torch import Tensor, nn

import fastrnn


@pytest.fixture
def here(isa, monkeypatch):
    monkeypatch.setenv("FASTRNN_CPU_ISA", isa)
    return isa


def values() -> Tensor:
    """Of every size: 2^-60 to 2^7 with both signs, each power of two in 500 places."""
    mantissas = 1 + torch.arange(500, dtype=torch.float64) / 500
    magnitudes = (2.0 ** torch.arange(-60, 8, dtype=torch.float64)[:, None] * mantissas).flatten().float()
    return torch.cat([magnitudes, -magnitudes, torch.tensor([0.0])])


@torch.no_grad()
def one_activation(layer: nn.RNNBase, rows: dict[int, tuple[float, float]]) -> nn.RNNBase:
    """Of one unit, without recurrence: each gate is weight * x + bias."""
    for parameter in layer.parameters():
        parameter.zero_()
    for row, (weight, bias) in rows.items():
        layer.weight_ih_l0[row, 0] = weight
        layer.bias_ih_l0[row] = bias
    return layer


def test_tanh(here, tmp_path):
    """Relative to tanh at every size, and within as much of 1 where it is saturated."""
    model, x = load(one_activation(nn.RNN(1, 1), {0: (1.0, 0.0)}), tmp_path), values()
    y, expected = model(x[:, None]).flatten(), torch.tanh(x.double())
    normal = x.abs() > 1e-30
    assert ((y - expected) / expected)[normal].abs().max() < 4.5e-7
    assert y.abs().max() < 1 + 3e-7
    assert y[x == 0] == 0
    ends = model(torch.tensor([[float("inf")], [-float("inf")], [float("nan")]])).flatten()
    torch.testing.assert_close(
        ends, torch.tensor([1.0, -1.0, float("nan")]), atol=3e-7, rtol=0, equal_nan=True
    )


def test_sigmoid(here, tmp_path):
    """A GRU's 1 - z, with n = 1 and h = 0: never outside of 0 and 1, exactly there once saturated."""
    layer = one_activation(nn.GRU(1, 1), {1: (-1.0, 0.0), 2: (0.0, 30.0)})
    x = values()
    model = load(layer, tmp_path)
    y = torch.stack([one_step(model, row) for row in x[:: len(x) // 2000]]).flatten()
    x = x[:: len(x) // 2000]
    assert (y - torch.sigmoid(x.double())).abs().max() < 5e-7
    saturated = x.abs() > 20
    torch.testing.assert_close(y[saturated], (x[saturated] > 0).float(), atol=3e-7, rtol=0)


def one_step(model, x: Tensor) -> Tensor:
    model.reset()
    return model(x.view(1, 1))


@pytest.mark.parametrize("hidden", [1, 8, 17, 33, 48, 49, 64, 65])
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_layers_against_the_definition(kind, hidden, here, tmp_path):
    """Long sequences, few units and the first that are not: no error grows with the steps."""
    torch.manual_seed(hidden)
    layer, x = kind(2, hidden), torch.randn(400, 2)
    expected = kind(2, hidden, dtype=torch.float64)
    expected.load_state_dict(layer.state_dict())
    y = expected(x.double())[0].detach()
    assert (load(layer, tmp_path)(x) - y).abs().max() < 2e-6
    assert (steps_of(layer, x) - y).abs().max() < 2e-6


def test_a_streamers_chunk_is_its_steps(here):
    """Of few units: the same bits, a step or a chunk at a time, from any state."""
    for layer in (
        fastrnn.LSTM(3, 20, num_layers=2),
        fastrnn.GRU(3, 40),
        fastrnn.RNN(3, 7, nonlinearity="relu"),
    ):
        stream, x = layer.streamer(), torch.randn(30, 3)
        state = torch.randn(layer.num_layers, 1, layer.hidden_size)
        first = (state, state.flip(0)) if isinstance(layer, fastrnn.LSTM) else state
        whole, last = stream(x.unsqueeze(1), first)
        state = first
        for row, expected in zip(x, whole, strict=True):
            y, state = stream.step(row.unsqueeze(0), state)
            assert torch.equal(y, expected)
        for a, b in zip(*((s if isinstance(s, tuple) else (s,)) for s in (state, last)), strict=True):
            assert torch.equal(a, b)
        strided = torch.randn(30, 1, 6)[..., ::2]
        torch.testing.assert_close(
            stream(strided, first)[0], layer(strided, first)[0].detach(), atol=2e-6, rtol=1e-5
        )
