"""Against haste (docs/variants.md, "Ours and haste's"): its steps in numpy, after the equations of its
kernels, with its names, its order of gates and its one bias; and fastrnn's layers with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import assert_close

import fastrnn
from fastrnn._run import variant as run_variant

T, B, C, H = 5, 3, 4, 6


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def layer_norm(v, gain, bias=0.0):
    """haste's, eps 1e-5 within the root, over the last dimension."""
    mean = v.mean(-1, keepdims=True)
    var = ((v - mean) ** 2).mean(-1, keepdims=True)
    return (v - mean) / np.sqrt(var + 1e-5) * gain + bias


def haste_lstm(x, kernel, recurrent_kernel, bias, norm=None, zoneout=0.0, mask=None):
    """Gates i, g, f, o. norm: gamma of both products, gamma_h and beta_h of c. mask (T, B, H) keeps h."""
    h = c = np.zeros((B, H))
    found = []
    for t in range(T):
        wx, rh = x[t] @ kernel, h @ recurrent_kernel
        if norm is not None:
            wx, rh = layer_norm(wx, norm["gamma"][0]), layer_norm(rh, norm["gamma"][1])
        i, g, f, o = np.split(wx + rh + bias, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        shown = c if norm is None else layer_norm(c, norm["gamma_h"], norm["beta_h"])
        new = sigmoid(o) * np.tanh(shown)
        keep = zoneout if mask is None else mask[t]
        h = keep * h + (1 - keep) * new
        found.append(h)
    return torch.from_numpy(np.stack(found))


def haste_gru(x, kernel, recurrent_kernel, bias, recurrent_bias, gamma=None, zoneout=0.0):
    """Gates z, r, h."""
    h = np.zeros((B, H))
    found = []
    for t in range(T):
        wx, rh = x[t] @ kernel, h @ recurrent_kernel
        if gamma is not None:
            wx, rh = layer_norm(wx, gamma[0]), layer_norm(rh, gamma[1])
        x_z, x_r, x_g = np.split(wx + bias, 3, -1)
        h_z, h_r, h_g = np.split(rh + recurrent_bias, 3, -1)
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        new = z * h + (1 - z) * np.tanh(x_g + r * h_g)
        h = zoneout * h + (1 - zoneout) * new
        found.append(h)
    return torch.from_numpy(np.stack(found))


def weights(gates: int):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(T, B, C))
    sizes = (C, gates * H), (H, gates * H), (gates * H,), (gates * H,), (2, gates * H), (H,), (H,)
    return x, *(rng.normal(size=s) * 0.7 for s in sizes)


def filled(layer, order, **given):
    """The layer with haste's weights: their gates in torch's order."""
    with torch.no_grad():
        for name, value in given.items():
            value = torch.from_numpy(value)
            if value.size(-1) == len(order) * H:
                value = torch.cat([value.split(H, -1)[i] for i in order], -1)
            getattr(layer, f"{name}_l0").copy_(value.t() if value.dim() == 2 else value)
    return layer


@pytest.mark.parametrize("norm", [False, True])
def test_lstm(norm, monkeypatch):
    """Layer norm and zoneout of h: in evaluation, and in training with one mask for both."""
    x, kernel, recurrent, bias, _, gamma, gamma_h, beta_h = weights(4)
    options = {"norm": "layer"} if norm else {}
    layer = fastrnn.LSTM(C, H, zoneout=(0.3, 0.0), dtype=torch.float64, **options)
    given = {"weight_ih": kernel, "weight_hh": recurrent, "bias_ih": bias, "bias_hh": 0 * bias}
    theirs = None
    if norm:
        theirs = {"gamma": gamma, "gamma_h": gamma_h, "beta_h": beta_h}
        given |= {"norm_ih": gamma[0], "norm_hh": gamma[1], "norm_c": gamma_h, "norm_c_bias": beta_h}
    filled(layer, (0, 2, 1, 3), **given)
    got = layer.eval()(torch.from_numpy(x))[0]
    assert_close(got, haste_lstm(x, kernel, recurrent, bias, theirs, 0.3), torch.float64)
    drawn, draw = [], run_variant._bernoulli
    monkeypatch.setattr(run_variant, "_bernoulli", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    got = layer.train()(torch.from_numpy(x))[0]
    assert_close(got, haste_lstm(x, kernel, recurrent, bias, theirs, mask=drawn[0].numpy()), torch.float64)


@pytest.mark.parametrize("norm", [False, True])
def test_gru(norm):
    """Layer norm, the recurrent bias of n within r * (.), zoneout's expectation."""
    x, kernel, recurrent, bias, recurrent_bias, gamma, *_ = weights(3)
    layer = fastrnn.GRU(C, H, zoneout=0.2, dtype=torch.float64, **({"norm": "layer"} if norm else {}))
    given = {"weight_ih": kernel, "weight_hh": recurrent, "bias_ih": bias, "bias_hh": recurrent_bias}
    if norm:
        given |= {"norm_ih": gamma[0], "norm_hh": gamma[1]}
    filled(layer, (1, 0, 2), **given)
    want = haste_gru(x, kernel, recurrent, bias, recurrent_bias, gamma if norm else None, 0.2)
    assert_close(layer.eval()(torch.from_numpy(x))[0], want, torch.float64)


def test_indrnn():
    """tanh(W x + u * h + b)."""
    x, kernel, _, bias, *_, u, _ = weights(1)
    layer = fastrnn.IndRNN(C, H, nonlinearity="tanh", dtype=torch.float64)
    filled(layer, (0,), weight_ih=kernel, bias_ih=bias, weight_hh=u)
    h, found = np.zeros((B, H)), []
    for t in range(T):
        h = np.tanh(x[t] @ kernel + u * h + bias)
        found.append(h)
    assert_close(layer(torch.from_numpy(x))[0], torch.from_numpy(np.stack(found)), torch.float64)
