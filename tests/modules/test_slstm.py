"""SLSTM: its equations in numpy, the xlstm package's own cell where it is installed, rows, derivatives."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import randn
from tolerances import assert_close
from variant_cases import dense

import fastrnn

IN, H, HEADS = 3, 6, 2


def build(**more) -> fastrnn.SLSTM:
    torch.manual_seed(0)
    return fastrnn.SLSTM(IN, H, **{"num_heads": HEADS, "dtype": torch.float64, **more})


def test_traced():
    """A trace holds the steps that it was made of, and refuses others rather than leave them out."""
    layer, x = build(), randn(4, 2, IN, dtype=torch.float64)
    assert_close(torch.jit.trace(layer, x)(x)[0], layer(x)[0], torch.float64)
    with pytest.raises(RuntimeError, match="Expected 1 elements"):
        torch.jit.trace(layer, x[:1])(x)


def by_hand(layer, x, state):
    """(h of every step, last state) of the one direction, without a stabiliser: exponentials as they are."""
    w = {k.removesuffix("_l0"): v.detach().numpy() for k, v in layer.named_parameters()}
    w_hh = dense(w["weight_hh"], layer.num_heads, 4)
    h, c, n, m = (s.numpy() for s in state)
    c, n = c * np.exp(m), n * np.exp(m)
    found = []
    for row in x.numpy():
        i, f, z, o = np.split(row @ w["weight_ih"].T + w["bias_ih"] + h @ w_hh.T, 4, -1)
        i, f, o = np.exp(i), 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-o))
        c, n = f * c + i * np.tanh(z), f * n + i
        h = o * c / n
        found.append(h)
    return torch.from_numpy(np.stack(found)), torch.from_numpy(c), torch.from_numpy(n)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_equations(heads):
    """The stabiliser changes no h; c and n are the plain ones times exp(-m)."""
    layer = build(num_heads=heads)
    x = randn(9, 4, IN, dtype=torch.float64)
    zeros = (torch.zeros(4, H, dtype=torch.float64),) * 4
    y, (h, c, n, m) = layer(x)
    want, want_c, want_n = by_hand(layer, x, zeros)
    assert_close(y, want, torch.float64)
    assert_close(h[0], want[-1], torch.float64)
    assert_close((c * m.exp())[0], want_c, torch.float64)
    assert_close((n * m.exp())[0], want_n, torch.float64)
    # Going on from a state is one call.
    first, state = layer(x[:5])
    rest, last = layer(x[5:], state)
    assert_close(torch.cat([first, rest]), y, torch.float64)
    for a, b in zip(last, (h, c, n, m), strict=True):
        assert_close(a, b, torch.float64)


def test_nothing_overflows():
    """Gates of hundreds: exponentials of them are no float32, their ratios are."""
    layer = build(dtype=torch.float32)
    y, state = layer(400 * randn(50, 2, IN))
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(s).all() for s in state)
    assert y.abs().max() <= 1
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_rows():
    """Lengths and resets, both directions and layers: a row's own steps alone."""
    layer = build(bidirectional=True, num_layers=2)
    x = randn(6, 3, IN, dtype=torch.float64)
    lengths = [6, 3, 0]
    y, state = layer(x, lengths=lengths)
    for row, n in enumerate(lengths[:2]):
        own, last = layer(x[:n, row])
        assert_close(y[:n, row], own, torch.float64)
        assert not y[n:, row].any()
        for a, b in zip(state, last, strict=True):
            assert_close(a[:, row], b, torch.float64)
    assert not any(s[:, 2].any() for s in state)
    one = build(bidirectional=True)
    reset = torch.zeros(6, 3, dtype=torch.bool)
    reset[2] = True
    y, _ = one(x, reset=reset)
    assert_close(y[2:, :, :H], one(x[2:])[0][..., :H], torch.float64)
    assert_close(y[:2, :, H:], one(x[:2])[0][..., H:], torch.float64)


def test_derivatives():
    """First and second derivatives agree with finite differences."""
    layer = build()
    names = [n for n, _ in layer.named_parameters()]

    def call(x, *weights):
        y, state = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))
        return y, *state

    inputs = (randn(4, 2, IN, dtype=torch.float64).requires_grad_(),)
    inputs += tuple(p.detach().requires_grad_() for p in layer.parameters())
    torch.autograd.gradcheck(call, inputs, fast_mode=True)
    torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_as_a_module():
    """Steps, copies, printing, half types, batch_first, errors."""
    layer = build(batch_first=True, dtype=torch.float32)
    x = randn(2, 5, IN)
    y, _ = layer(x)
    state = None
    for t in range(5):
        out, state = layer.step(x[:, t], state)
        assert_close(out, y[:, t], torch.float32)
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(made(x)[0], y)
    assert repr(layer) == "SLSTM(3, 6, batch_first=True, num_heads=2)"
    assert_close(copy.deepcopy(layer).bfloat16()(x.bfloat16())[0], y, torch.bfloat16, slack=4)
    with pytest.raises(ValueError, match="num_heads should divide hidden_size = 6, got 4"):
        fastrnn.SLSTM(IN, 6, num_heads=4)
    with pytest.raises(TypeError, match="tuple of 4 states"):
        layer(x, torch.zeros(1, 2, H))


@pytest.mark.parametrize("heads", [1, 2])
def test_xlstms_own_cell(heads):
    """The xlstm package's cell: outputs, states and gradients, its weights here and back."""
    cells = pytest.importorskip("xlstm.blocks.slstm.cell")
    config = cells.sLSTMCellConfig(
        hidden_size=H,
        num_heads=heads,
        backend="vanilla",
        recurrent_weight_init="standard",
        bias_init="standard",
        dtype="float32",
        enable_automatic_mixed_precision=False,
        input_shape="SBGNH",
        output_shape="SBH",
    )
    cell = cells.sLSTMCell(config)
    layer = fastrnn.SLSTM.from_xlstm(cell)
    gx = randn(7, 3, 4 * H).requires_grad_()
    y, state = layer(gx)
    want, wanted = cell(gx)
    assert_close(y, want, torch.float32)
    for got, expected in zip(state, wanted, strict=True):
        assert_close(got[0], expected, torch.float32)
    weight = randn(*y.shape, seed=3)
    ours, theirs = (torch.autograd.grad((r * weight).sum(), gx)[0] for r in (y, want))
    assert_close(ours, theirs, torch.float32, gradient=True)
    other = fastrnn.SLSTM(IN, H, num_heads=heads)
    other.to_xlstm(cell)
    back = fastrnn.SLSTM.from_xlstm(cell, IN)
    assert torch.equal(back.weight_hh_l0, other.weight_hh_l0)
    assert torch.equal(back.bias_ih_l0, other.bias_ih_l0)
