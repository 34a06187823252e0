"""Layers with variants in torch's tools: autocast, torch.func, compilers, export, steps and streams,
parametrized weights; and which backends have them."""

from __future__ import annotations

import pytest
import torch
from helpers import randn
from tolerances import assert_close
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from variant_layers import IN, LAYERS, H, build, flat

import fastrnn


@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_autocast(name, variant):
    """Under autocast the answers have the dtypes of the plain layers."""
    layer, plain = build(name, variant), build(name, {})
    x = randn(5, 2, IN)
    with torch.autocast("cpu", torch.bfloat16):
        found, want = flat(layer(x)), flat(plain(x))
        sum(t.float().sum() for t in found).backward()
    assert [t.dtype for t in found] == [t.dtype for t in want]
    assert layer.weight_hh_l0.grad.dtype == torch.float32


@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_transforms(name, variant):
    """torch.func: rows by vmap, per-sample gradients, forward mode."""
    layer = build(name, variant, dtype=torch.float64).eval()
    x = randn(3, 4, IN, dtype=torch.float64)  # (rows, T, I)
    rows = vmap(lambda x: layer(x)[0])(x)
    assert_close(rows, layer(x.transpose(0, 1))[0].transpose(0, 1), torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,))[0].square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x)
    whole = torch.autograd.grad(layer(x.transpose(0, 1))[0].square().sum(), list(parameters.values()))
    for got, want in zip(each.values(), whole, strict=True):
        assert_close(got.sum(0), want, torch.float64, gradient=True)
    _, tangent = jvp(lambda x: loss(parameters, x), (x[0],), (torch.ones_like(x[0]),))
    given = x[0].clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(parameters, given), given)
    assert_close(tangent, want.sum(), torch.float64, gradient=True)
    layer.train()
    vmap(lambda x: layer(x)[0], randomness="different")(x)


@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_compiled(name, variant):
    """torch.compile without breaks: the numbers and gradients of eager mode, in evaluation and in
    training."""
    layer = build(name, variant, dtype=torch.float64).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = randn(3, 2, IN, dtype=torch.float64)
    for a, b in zip(flat(compiled(x)), flat(layer(x)), strict=True):
        assert_close(a, b, torch.float64)
    gradients = [
        torch.autograd.grad(flat(f(x))[0].square().sum(), list(layer.parameters()), allow_unused=True)
        for f in (compiled, layer)
    ]
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, torch.float64, gradient=True)
    layer.train()
    torch.manual_seed(1)
    assert torch.isfinite(compiled(x)[0]).all()


@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_exported_and_traced(name, variant):
    """torch.export and torch.jit.trace record what evaluation does; TorchScript says that it cannot."""
    layer = build(name, variant).eval()
    x = randn(3, 2, IN)
    program = torch.export.export(layer, (x,))
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    for found in (program.module()(x), traced(x)):
        for a, b in zip(flat(found), flat(layer(x)), strict=True):
            assert_close(a, b, torch.float32)
    with pytest.raises(RuntimeError, match="has no form in TorchScript"):
        torch.jit.script(nn.Sequential(layer))


@pytest.mark.parametrize(("name", "variant"), LAYERS)
def test_streamed(name, variant):
    """step() and a streamer give the numbers of one call."""
    layer = build(name, variant).eval()
    x = randn(4, 2, IN)
    want, stream = layer(x)[0], layer.streamer()
    for step in (layer.step, stream.step):
        state = None
        for t, expected in enumerate(want):
            y, state = step(x[t], state)
            assert_close(y, expected, torch.float32)


def test_backends():
    """torch's own layers have no variants, and say so; the kernels have them."""
    layer = fastrnn.LSTM(IN, H, norm="layer", backend="reference")
    x = randn(4, 2, IN)
    want = layer(x)[0]
    layer.backend = "auto"
    assert_close(layer(x)[0], want, torch.float32)
    assert fastrnn.explain(layer).kernels == ["packed"]
    layer.backend = "cudnn"
    with pytest.raises(RuntimeError, match="torch's own layer has no norm"):
        layer(x)
    assert fastrnn.explain(fastrnn.LSTM(IN, H, coupled=True, weight_dropout=0.1)).kernels == ["packed"]


def test_weight_norm_and_pruning():
    """Parametrized weights of a variant: they are read anew, as the plain layer's."""
    layer = build(*LAYERS[0]).eval()
    x = randn(4, 2, IN)
    want = layer(x)[0]
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    assert_close(layer(x)[0], want, torch.float32)
    layer(x)[0].sum().backward()
    assert layer.parametrizations.weight_hh_l0.original1.grad.abs().sum() > 0
    layer.reset_parameters()
