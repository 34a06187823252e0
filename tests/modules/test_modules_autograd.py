"""Modules inside autograd: backward twice, in eval mode, in threads, in training."""

from __future__ import annotations

import pytest
import torch
from helpers import CELLS, LAYERS, assert_same, at_once, compare, flat, pair, randn, results
from tolerances import TORCH_SLACK, assert_close
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn

T, B, IN, H = 5, 3, 4, 6
SAVES = ["gates", "recompute"]
X = randn(T, B, IN, dtype=torch.float64)


def _pair(name, *args, **kwargs):
    return pair(name, IN, H, *args, dtype=torch.float64, **kwargs)


def _gradients(module, x=X):
    """Gradients of the sum of squares of all results."""
    module.zero_grad()
    sum(t.pow(2).sum() for t in flat(module(x))).backward()
    return [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", LAYERS)
def test_backward_twice(name, save):
    """retain_graph: a second backward gives the same gradients, so nothing saved was overwritten."""
    ours, theirs = _pair(name, 2, bidirectional=True, save=save)
    x = X.clone().requires_grad_()
    found = []
    for m in (ours, theirs):
        out = flat(m(x))
        loss = sum(t.pow(2).sum() for t in out)
        inputs = (x, *m.parameters())
        first = torch.autograd.grad(loss, inputs, retain_graph=True)
        again = torch.autograd.grad(loss, inputs, retain_graph=True)
        other = torch.autograd.grad(out[0].sum(), inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        found.append((*first, *other))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, torch.float64, gradient=True, slack=2)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_eval_mode(name):
    """Gradients in eval mode, which cuDNN refuses, and of inputs alone or of one weight alone."""
    ours, theirs = pair(name, IN, H, dtype=torch.float64)
    ours.eval(), theirs.eval()
    x = X[0] if name in CELLS else X
    compare(ours, theirs, x)
    for m in (ours, theirs):
        m.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    got, expected = (torch.autograd.grad(flat(m(leaf))[0].sum(), leaf)[0] for m in (ours, theirs))
    assert_close(got, expected, torch.float64, gradient=True, slack=2)
    key = "bias_ih_l0" if name in LAYERS else "bias_ih"
    for m in (ours, theirs):
        m.get_parameter(key).requires_grad_()
    got, expected = (
        torch.autograd.grad(flat(m(x))[0].sum(), m.get_parameter(key))[0] for m in (ours, theirs)
    )
    assert_close(got, expected, torch.float64, gradient=True, slack=2)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_no_gradient_wanted(name):
    """no_grad and inference_mode: the same numbers, and nothing attached to them."""
    ours, _ = pair(name, IN, H, dtype=torch.float64)
    x = X[0] if name in CELLS else X
    attached = flat(ours(x))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            free = flat(ours(x))
        assert not any(t.requires_grad for t in free)
        for a, b in zip(free, attached, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    assert all(t.requires_grad for t in attached)


@pytest.mark.parametrize("name", LAYERS)
def test_losses_of_single_results(name):
    """A loss may look at one result only: the others' gradients are then missing, not garbage."""
    ours, theirs = _pair(name, 2, bidirectional=True)
    h = randn(4, B, H, dtype=torch.float64)
    for i in range(3 if name == "LSTM" else 2):
        found = []
        for m in (ours, theirs):
            leaves = [X.clone().requires_grad_(), h.clone().requires_grad_(), (h + 1).requires_grad_()]
            hx = tuple(leaves[1:]) if name == "LSTM" else leaves[1]
            wanted = (*leaves[: 3 if name == "LSTM" else 2], *m.parameters())
            out = flat(m(leaves[0], hx))[i]
            found.append(torch.autograd.grad(out[-1].sum(), wanted, allow_unused=True))
        for a, b in zip(*found, strict=True):
            a = torch.zeros_like(b) if a is None and b is not None else a
            b = torch.zeros_like(a) if b is None and a is not None else b
            if a is not None:
                assert_close(a, b, torch.float64, gradient=True, slack=2)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", LAYERS)
def test_training(name, save):
    """Twenty optimiser steps, weights updated in place, follow torch's to the end; dropout included."""
    histories = []
    for m in _pair(name, 2, dropout=0.2, save=save):
        torch.manual_seed(0)
        optimiser = torch.optim.Adam(m.parameters(), lr=0.01)
        losses = []
        for _ in range(20):
            optimiser.zero_grad()
            loss = (m(X)[0] - 0.3).pow(2).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(m.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.detach())
        histories.append(torch.stack(losses))
    assert histories[0][-1] < 0.9 * histories[0][0]
    # Adam divides by small roots: rounding grows with the steps.
    torch.testing.assert_close(*histories, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_truncated_backpropagation(name):
    """A state carried from chunk to chunk, detached or not, through a stack of calls."""
    for detach in (True, False):
        found = []
        for m in _pair(name):
            hx, loss = None, 0
            for chunk in X.split(2):
                y, hx = m(chunk, hx)
                loss = loss + y.pow(2).sum()
                if detach:
                    hx = tuple(s.detach() for s in hx) if name == "LSTM" else hx.detach()
            m.zero_grad()
            loss.backward()
            found.append([p.grad for p in m.parameters()])
        for a, b in zip(*found, strict=True):
            assert_close(a, b, torch.float64, gradient=True, slack=2)


@pytest.mark.parametrize("name", LAYERS)
def test_one_module_in_many_threads(name):
    """Threads share a module: each gets the numbers of its own input, forward and backward, packed or not."""
    module, _ = _pair(name, 2)
    inputs = [randn(T, n % 3 + 1, IN, dtype=torch.float64, seed=n) for n in range(8)]
    inputs += [pack_sequence([randn(n, IN, dtype=torch.float64) for n in (4, 2)]) for _ in range(2)]

    def gradients(x):
        out = flat(module(x))
        return [*out, *torch.autograd.grad(sum(t.pow(2).sum() for t in out), list(module.parameters()))]

    expected = [gradients(x) for x in inputs]

    def work(i):
        for a, b in zip(gradients(inputs[i]), expected[i], strict=True):
            assert_close(a, b, torch.float64, gradient=True)

    at_once(len(inputs), work)


@pytest.mark.parametrize("name", LAYERS)
def test_hooks_and_checkpointing(name):
    """Hooks on outputs and modules run, and activation checkpointing recomputes the same gradients."""
    ours, theirs = _pair(name, 2, dropout=0.5)
    seen = []
    ours.register_forward_hook(lambda m, args, out: seen.append("forward"))
    ours.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    torch.manual_seed(3)
    expected = _gradients(ours)
    assert seen == ["forward", "backward"]
    ours.zero_grad()
    torch.manual_seed(3)
    out = checkpoint(lambda x: flat(ours(x)), X.clone().requires_grad_(), use_reentrant=False)
    sum(t.pow(2).sum() for t in out).backward()
    for p, e in zip(ours.parameters(), expected, strict=True):
        assert_close(p.grad, e, torch.float64, gradient=True)
    torch.manual_seed(3)
    for got, e in zip(expected, _gradients(theirs), strict=True):
        assert_close(got, e, torch.float64, gradient=True, slack=2)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_gradcheck(name, save):
    """Gradients agree with finite differences: input, states and every weight, through all results."""
    options = {} if name in CELLS else {"num_layers": 2, "bidirectional": True, "save": save}
    module = getattr(fastrnn, name)(2, 3, dtype=torch.float64, **options)
    weights = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
    shape = (2, 3) if name in CELLS else (4, 2, 3)
    states = [randn(*shape, dtype=torch.float64, seed=i) for i in range(1 + name.startswith("LSTM"))]
    x = randn(*((2, 2) if name in CELLS else (3, 2, 2)), dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, *states, *weights.values())]

    def call(x, *tensors):
        hx, ws = tensors[: len(states)], dict(zip(weights, tensors[len(states) :], strict=True))
        hx = hx if name.startswith("LSTM") else hx[0]
        return tuple(flat(torch.func.functional_call(module, ws, (x, hx))))

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_double_backward(name):
    """A gradient of a gradient, as gradient penalties take it, is torch's."""
    found = []
    for m in pair(name, IN, H, dtype=torch.float64):
        x = (X[0] if name in CELLS else X).clone().requires_grad_()
        (g,) = torch.autograd.grad(sum(t.pow(2).sum() for t in flat(m(x))), x, create_graph=True)
        found.append([g, *torch.autograd.grad(g.pow(2).sum(), (x, *m.parameters()))])
    for a, b in zip(*found, strict=True):
        assert_close(a, b, torch.float64, gradient=True, slack=10)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS, "SRU", "masked", "large SRU", "large MinGRU"])
def test_batches_of_gradients(name):
    """is_grads_batched=True, and with it jacobian(vectorize=True): a batch of gradients in one backward pass
    equals one pass for each."""
    torch.manual_seed(0)
    if name == "large SRU":  # whose products have a backward pass of their own
        module, x = fastrnn.SRU(300, 400, 1), randn(20, 16, 300)
    elif name == "large MinGRU":
        module, x = fastrnn.MinGRU(128, 128), randn(20, 16, 128)
    else:
        module = getattr(fastrnn, "GRU" if name == "masked" else name)(IN, H, dtype=torch.float64)
        x = X[0] if name in CELLS else X
    found = flat(module(x, **({"lengths": [5, 0, 2]} if name == "masked" else {})))
    y, parameters = found[0].flatten()[:4], list(module.parameters())
    batch = torch.autograd.grad(
        y, parameters, torch.eye(4, dtype=y.dtype), retain_graph=True, is_grads_batched=True
    )
    for i in range(4):
        each = torch.autograd.grad(y[i], parameters, retain_graph=True)
        torch.testing.assert_close([g[i] for g in batch], list(each), rtol=1e-4, atol=1e-6)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: flat(module(x))[0].flatten()[:2], x, vectorize=True
    )
    assert jacobian.shape == (2, *x.shape)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_training_step(name):
    """float32, where torch's LSTM is oneDNN's: one step's gradients at a size of everyday use."""
    ours, theirs = pair(name, 20, 40, 2, bidirectional=True)
    x = randn(12, 8, 20)
    got, expected = results(ours, x), results(theirs, x)
    assert_same(got, expected, torch.float32, TORCH_SLACK[torch.float32])


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_transforms(name):
    """torch.func's grad, jvp and hessian, forward-mode AD and, beyond torch, per-sample gradients by vmap."""
    ours, theirs = pair(name, 2, 3, dtype=torch.float64)
    x = randn(*((2, 2) if name in CELLS else (3, 2, 2)), dtype=torch.float64)
    weights = {k: p.detach() for k, p in theirs.named_parameters()}

    def loss(m):
        return lambda w, x: flat(torch.func.functional_call(m, w, (x,)))[0].pow(2).sum()

    (g, gx), (e, ex) = (torch.func.grad(loss(m), (0, 1))(weights, x) for m in (ours, theirs))
    torch.testing.assert_close((g, gx), (e, ex))
    for transform in (
        lambda f: torch.func.hessian(f, 1)(weights, x),
        lambda f: torch.func.jvp(lambda x: f(weights, x), (x,), (x.sin(),)),
    ):
        torch.testing.assert_close(transform(loss(ours)), transform(loss(theirs)))
    rows = 0 if name in CELLS else 1
    samples = torch.func.vmap(torch.func.grad(loss(ours)), in_dims=(None, rows))(weights, x)
    torch.testing.assert_close({k: v.sum(0) for k, v in samples.items()}, e)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x.sin())
        got, expected = (torch.autograd.forward_ad.unpack_dual(flat(m(dual))[0]) for m in (ours, theirs))
        torch.testing.assert_close((got.primal, got.tangent), (expected.primal, expected.tangent))
