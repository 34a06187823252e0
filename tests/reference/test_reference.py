"""fastrnn.reference is what kernels are compared with, so it is compared with torch.nn and with calculus."""

from __future__ import annotations

import pytest
import torch
from helpers import LAYERS, flat, randn
from tolerances import assert_close
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fastrnn import reference

T, B, IN, H, P = 4, 3, 5, 7, 2
KINDS = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": P}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
]


def _cell_name(module: nn.RNNBase) -> str:
    return module.mode.lower()


def _state(module: nn.RNNBase, dtype: torch.dtype, batch: int = B) -> tuple:
    directions = 2 if module.bidirectional else 1
    h = randn(directions, batch, module.proj_size or module.hidden_size, dtype=dtype, seed=2)
    return h, (randn(directions, batch, H, dtype=dtype, seed=3) if module.mode == "LSTM" else None)


def _hx(h, c):
    return h if c is None else (h, c)


def _layer(module: nn.RNNBase, x, h, c, batch_sizes=None):
    weights = list(module.parameters())
    return reference.layer(
        x, h, c, weights, cell=_cell_name(module), bias=module.bias, batch_sizes=batch_sizes
    )


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_layer_is_torchs(name, options, bias, bidirectional):
    """The definition is that of torch.nn: gate order, both biases, projection, directions."""
    m = getattr(nn, name)(IN, H, bias=bias, bidirectional=bidirectional, dtype=torch.float64, **options)
    x = randn(T, B, IN, dtype=torch.float64)
    h, c = _state(m, torch.float64)
    for got, expected in zip(flat(_layer(m, x, h, c)[: 3 - (c is None)]), flat(m(x, _hx(h, c))), strict=True):
        assert_close(got, expected, torch.float64)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_packed_layer_is_torchs(name, options, bidirectional):
    """Packed: the reverse direction starts at each row's own end, h_n holds each row's own last state."""
    m = getattr(nn, name)(IN, H, bidirectional=bidirectional, dtype=torch.float64, **options)
    packed = pack_sequence([randn(n, IN, dtype=torch.float64, seed=n) for n in (5, 5, 3, 1)])
    h, c = _state(m, torch.float64, 4)
    y, (expected_y, *expected) = _layer(m, packed.data, h, c, packed.batch_sizes), m(packed, _hx(h, c))
    assert_close(y[0], expected_y.data, torch.float64)
    for got, state in zip(y[1:], flat(expected), strict=False):
        assert_close(got, state, torch.float64)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("name", "options"), KINDS[:4])
def test_first_and_second_derivatives(name, options, bidirectional):
    """The fallback of double backward: both derivatives agree with finite differences, packed and not."""
    m = getattr(nn, name)(2, 3, bidirectional=bidirectional, dtype=torch.float64, **options)
    weights = [w.detach().requires_grad_() for w in m.parameters()]
    h, c = (None if s is None else s[..., :3].requires_grad_() for s in _state(m, torch.float64, 2))
    states = [h] if c is None else [h, c]

    def call(x, batch_sizes, *tensors):
        h, c = tensors[0], (None if c_missing else tensors[1])
        out = reference.layer(
            x, h, c, tensors[len(states) :], cell=_cell_name(m), bias=True, batch_sizes=batch_sizes
        )
        return tuple(t for t in out if t is not None)

    c_missing = c is None
    for x, sizes in ((randn(2, 2, 2, dtype=torch.float64), None), (randn(3, 2, dtype=torch.float64), (2, 1))):
        x.requires_grad_()
        sizes = None if sizes is None else torch.tensor(sizes)
        inputs = (x, *states, *weights)
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(lambda x, *ts, s=sizes: call(x, s, *ts), inputs, fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_cells_are_torchs(name):
    """lstm_cell, gru_cell and rnn_cell are the steps of the layers, biases optional."""
    for bias in (True, False):
        m = getattr(nn, name + "Cell")(IN, H, bias=bias, dtype=torch.float64)
        x, h = randn(B, IN, dtype=torch.float64), randn(B, H, dtype=torch.float64, seed=2)
        state = (h, randn(B, H, dtype=torch.float64, seed=3)) if name == "LSTM" else (h,)
        got = getattr(reference, name.lower() + "_cell")(x, *state, *m.parameters())
        for a, e in zip(flat(got), flat(m(x, state if name == "LSTM" else h)), strict=True):
            assert_close(a, e, torch.float64)


def test_relu_cell_and_projected_cell():
    """The variants of a cell that torch's cells have no module for, or only by an option."""
    m = nn.RNNCell(IN, H, nonlinearity="relu", dtype=torch.float64)
    x, h = randn(B, IN, dtype=torch.float64), randn(B, H, dtype=torch.float64)
    assert_close(reference.rnn_cell(x, h, *m.parameters(), nonlinearity="relu"), m(x, h), torch.float64)
    m = nn.LSTM(IN, H, proj_size=P, dtype=torch.float64)
    h, c = _state(m, torch.float64)
    got_h, got_c = reference.lstm_cell(x, h[0], c[0], *m.parameters())
    _, (h_n, c_n) = m(x[None], (h, c))
    assert_close(got_h, h_n[0], torch.float64)
    assert_close(got_c, c_n[0], torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_half_types_round_once(name, dtype):
    """Half types are computed in float32: the result is that of float32 on the same numbers, rounded."""
    m = getattr(nn, name)(IN, H, bidirectional=True).to(dtype)
    x = randn(T, B, IN, dtype=dtype)
    h, c = _state(m, dtype)
    got = _layer(m, x, h, c)
    wide = _layer(m.float(), x.float(), h.float(), None if c is None else c.float())
    for g, w in zip(got, wide, strict=True):
        if w is not None:
            assert g.dtype == dtype
            assert torch.equal(g, w.to(dtype))


@pytest.mark.parametrize("name", LAYERS)
def test_complex(name):
    """Complex numbers have no kernel: the reference is what runs them."""
    m = getattr(nn, name)(IN, H, bidirectional=True, dtype=torch.complex64)
    # Complex sigmoid and tanh have poles, near which any rounding grows: keep clear of them.
    for w in m.parameters():
        w.data.mul_(0.3)
    x = randn(T, B, IN, dtype=torch.complex64) * 0.1
    h, c = (None if s is None else s * 0.1 for s in _state(m, torch.complex64))
    for got, expected in zip(flat(_layer(m, x, h, c)[: 3 - (c is None)]), flat(m(x, _hx(h, c))), strict=True):
        assert_close(got, expected, torch.complex64)


@pytest.mark.parametrize("name", LAYERS)
def test_results_share_no_memory(name):
    """An in-place edit of one result must not reach another: a user adds to the output, and keeps h_n."""
    m = getattr(nn, name)(IN, H)
    x = randn(1, B, IN)
    h, c = _state(m, torch.float32)
    tensors = [t for t in (*_layer(m, x, h, c), x, h, c) if t is not None]
    addresses = {t.untyped_storage().data_ptr() for t in tensors}
    assert len(addresses) == len(tensors)


@pytest.mark.parametrize("name", LAYERS)
def test_empty_batch(name):
    """B = 0 runs, and its gradients are zero."""
    m = getattr(nn, name)(IN, H)
    y, h, _ = _layer(m, randn(T, 0, IN), *_state(m, torch.float32, 0))
    assert y.shape == (T, 0, H)
    assert h.shape == (1, 0, H)
    y.sum().backward()
    assert all(not w.grad.any() for w in m.parameters())
