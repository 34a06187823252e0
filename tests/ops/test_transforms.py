"""Derivatives of derivatives, transforms of functions, checkpointing, modes: what torch.nn's layers refuse
here or there. First derivatives and plain cases are in test_modules_autograd.py."""

from __future__ import annotations

import contextlib

import pytest
import torch
from helpers import CELLS, LAYERS, at_once, flat, pair, randn
from tolerances import assert_close
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fastrnn

IN, H = 2, 3
DOUBLE = torch.float64
OPTIONS = {
    **{name: {} for name in CELLS},
    "LSTM": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "GRU": {"num_layers": 2, "bidirectional": True},
    "RNN": {"bias": False},
}


def _module(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return getattr(fastrnn, name)(IN, H, dtype=DOUBLE, **options)


def _input(name: str, rows: int = 2):
    return randn(*((rows, IN) if name in CELLS else (3, rows, IN)), dtype=DOUBLE)


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {label: p.detach().clone() for label, p in module.named_parameters()}


def _loss(module: nn.Module):
    """A number as a function of weights and input."""
    return lambda weights, x: sum(t.pow(2).sum() for t in flat(functional_call(module, weights, (x,))))


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_gradgradcheck(name):
    """Second derivatives agree with finite differences: input, states, every weight, through all results."""
    module = _module(name, **OPTIONS[name])
    x = _input(name)
    states = [s.detach() for s in flat(module(x) if name in CELLS else module(x)[1])]
    weights = _weights(module)
    inputs = [t.requires_grad_() for t in (x, *states, *weights.values())]

    def call(x, *tensors):
        hx = tensors[: len(states)] if name.startswith("LSTM") else tensors[0]
        values = dict(zip(weights, tensors[len(states) :], strict=True))
        return tuple(flat(functional_call(module, values, (x, hx))))

    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_gradgradcheck_packed(name):
    """The same for packed batches, both directions."""
    module = _module(name, bidirectional=True)
    packed = pack_sequence([randn(n, IN, dtype=DOUBLE) for n in (3, 2, 1)])
    weights = _weights(module)
    inputs = [t.requires_grad_() for t in (packed.data.clone(), *weights.values())]

    def call(data, *tensors):
        x = PackedSequence(data, *packed[1:])
        return tuple(flat(functional_call(module, dict(zip(weights, tensors, strict=True)), (x,))))

    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_hessian_vector_products(name):
    """A Hessian times a vector by five roads: gradient of a gradient through the kernels, hvp and vhp of
    autograd.functional, torch.func's forward over reverse, and finite differences of their gradient."""
    module, x = _module(name), _input(name)
    weights = _weights(module)
    labels, values = list(weights), tuple(weights.values())
    v = tuple(randn(*w.shape, dtype=DOUBLE, seed=i) for i, w in enumerate(values))

    def f(*values):
        return _loss(module)(dict(zip(labels, values, strict=True)), x)

    def gradient(values):
        leaves = [w.detach().requires_grad_() for w in values]
        return torch.autograd.grad(f(*leaves), leaves)

    leaves = [w.clone().requires_grad_() for w in values]
    first = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
    expected = torch.autograd.grad(sum((g * d).sum() for g, d in zip(first, v, strict=True)), leaves)
    eps = 1e-6
    ahead, behind = (gradient([w + s * eps * d for w, d in zip(values, v, strict=True)]) for s in (1, -1))
    numeric = [(a - b) / (2 * eps) for a, b in zip(ahead, behind, strict=True)]
    roads = [
        torch.autograd.functional.hvp(f, values, v)[1],
        torch.autograd.functional.vhp(f, values, v)[1],
        torch.func.jvp(grad(f, tuple(range(len(values)))), values, v)[1],
    ]
    for found in roads:
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(numeric, list(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_jacobians(name):
    """Forward mode and reverse mode give the same Jacobian, also of a packed batch."""
    module = _module(name, **OPTIONS[name])
    inputs = [_input(name)]
    packed = pack_sequence([randn(n, IN, dtype=DOUBLE) for n in (3, 1)])
    if name in LAYERS:
        inputs.append(packed.data)

    for x in inputs:

        def f(x):
            return flat(module(PackedSequence(x, *packed[1:]) if x.dim() == 2 and name in LAYERS else x))[0]

        expected = torch.autograd.functional.jacobian(f, x)
        torch.testing.assert_close(jacrev(f)(x), expected)
        torch.testing.assert_close(jacfwd(f)(x), expected)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_per_sample_gradients(name):
    """vmap(grad(functional_call)): every row's gradient of every weight, as a loop finds it."""
    module = _module(name, **OPTIONS[name])
    weights, x = _weights(module), _input(name, rows=4)
    rows = 0 if name in CELLS else 1
    found = vmap(grad(_loss(module)), in_dims=(None, rows))(weights, x)
    for i, row in enumerate(x.unbind(rows)):
        leaves = {label: w.clone().requires_grad_() for label, w in weights.items()}
        _loss(module)(leaves, row).backward()
        for label, w in leaves.items():
            torch.testing.assert_close(found[label][i], w.grad)


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_ensembles(name):
    """vmap over the weights of several models, as torch.func.stack_module_state makes them."""
    models = [getattr(fastrnn, name)(IN, H, dtype=DOUBLE) for _ in range(3)]
    x = _input(name)
    weights, buffers = stack_module_state(models)
    found = vmap(lambda w, b: flat(functional_call(models[0], (w, b), (x,)))[0])(weights, buffers)
    for got, model in zip(found, models, strict=True):
        torch.testing.assert_close(got, flat(model(x))[0])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpointing(name, reentrant):
    """Both kinds of activation checkpointing, dropout included, give the gradients of plain backward; so does
    checkpoint_sequential."""
    module = _module(name, num_layers=2, dropout=0.4)
    x = _input(name)

    def gradients(call):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        torch.manual_seed(5)
        sum(t.pow(2).sum() for t in flat(call(leaf))).backward()
        return [leaf.grad, *(p.grad for p in module.parameters())]

    expected = gradients(module)
    got = gradients(lambda x: checkpoint(lambda x: tuple(flat(module(x))), x, use_reentrant=reentrant))
    chain = nn.Sequential(nn.Tanh(), module)
    in_a_chain = gradients(lambda x: checkpoint_sequential(chain, 1, x, use_reentrant=reentrant))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(in_a_chain, gradients(chain))


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_modes_without_gradients(name):
    """inference_mode and no_grad: the same numbers, no graph; a module made in inference_mode works there."""
    module, x = _module(name), _input(name)
    expected = [t.detach() for t in flat(module(x))]
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            for got, e in zip(flat(module(x)), expected, strict=True):
                assert torch.equal(got, e)
                assert not got.requires_grad
                assert got.is_inference() == (context is torch.inference_mode)
    with torch.inference_mode():
        inside = _module(name)
        assert all(torch.equal(a, b) for a, b in zip(flat(inside(x)), expected, strict=True))


@contextlib.contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_deterministic_algorithms(name, threads):
    """use_deterministic_algorithms(True) forbids nothing and changes no number, and its filling of new memory
    shows none that is read unwritten; two runs are equal bit for bit, forward and backward, on one thread
    and on two."""
    torch.set_num_threads(threads)
    ours, _ = pair(name, 24, 40, 2, bidirectional=True, dropout=0.3)
    x = randn(6, 9, 24)

    def run():
        torch.manual_seed(1)
        ours.zero_grad()
        out = flat(ours(x))
        sum(t.pow(2).sum() for t in out).backward()
        return [*out, *(p.grad.clone() for p in ours.parameters())]

    plain = run()
    with _deterministic():
        for a, b, c in zip(plain, run(), run(), strict=True):
            assert torch.equal(b, c)
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_threads_with_modes_of_their_own(name):
    """Threads at the same time in modes of their own: gradients of gradients, vmap, inference."""
    module, x = _module(name), _input(name)
    weights = _weights(module)

    def second():
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(flat(module(leaf))[0].pow(2).sum(), leaf, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), leaf)[0]

    def per_sample():
        own = _module(name)  # functional_call puts other weights into its module for the time of the call
        return vmap(grad(_loss(own)), in_dims=(None, 1))(weights, x)["weight_hh_l0"]

    @torch.inference_mode()
    def inference():
        return flat(module(x))[0].clone()

    jobs = [second, per_sample, inference] * 2
    expected = [job().clone() for job in jobs]
    at_once(len(jobs), lambda i: assert_close(jobs[i](), expected[i], DOUBLE, gradient=True), times=5)
