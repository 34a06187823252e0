"""linear_scan, MinGRU, MinLSTM and IndRNN: their equations in numpy, rows, derivatives, steps, compilers."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import randn
from tolerances import assert_close

import fastrnn
from fastrnn import functional, reference
from fastrnn._ops import linear_scan as op
from fastrnn._ops.product import product

IN, H = 3, 5
KINDS = [
    (fastrnn.MinGRU, {}),
    (fastrnn.MinGRU, {"log_space": True}),
    (fastrnn.MinLSTM, {}),
    (fastrnn.MinLSTM, {"log_space": True}),
    (fastrnn.IndRNN, {}),
    (fastrnn.IndRNN, {"nonlinearity": "tanh"}),
]


def build(cls, options, **more):
    torch.manual_seed(0)
    return cls(IN, H, **{"dtype": torch.float64, **more}, **options)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def by_hand(layer, x, h, suffix="_l0"):
    """A direction in numpy, forward in time, from the papers."""
    w = {k.removesuffix(suffix): v.detach().numpy() for k, v in layer.named_parameters()}
    found = []
    for row in x.numpy():
        gates = row @ w["weight_ih"].T + w["bias_ih"]
        if isinstance(layer, fastrnn.IndRNN):
            pre = gates + w["weight_hh"] * h
            h = np.maximum(pre, 0) if layer.nonlinearity == "relu" else np.tanh(pre)
            found.append(h)
            continue
        *others, v = np.split(gates, 2 if isinstance(layer, fastrnn.MinGRU) else 3, -1)
        if layer.log_space:
            v = np.where(v >= 0, v + 0.5, sigmoid(v))
        if len(others) == 1:
            z = sigmoid(others[0])
            h = (1 - z) * h + z * v
        else:
            f, i = map(sigmoid, others)
            h = f / (f + i) * h + i / (f + i) * v
        found.append(h)
    return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize(("cls", "options"), KINDS)
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_equations(cls, options, steps):
    """Every step is what the paper says, from zero and from a state."""
    layer = build(cls, options)
    x, hx = randn(steps, 2, IN, dtype=torch.float64), randn(1, 2, H, dtype=torch.float64, seed=2)
    y, h = layer(x, hx)
    want = by_hand(layer, x, hx[0].numpy())
    assert_close(y, want, torch.float64)
    assert_close(h[0], want[-1], torch.float64)
    assert_close(layer(x)[0], by_hand(layer, x, np.zeros((2, H))), torch.float64)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_rows_and_directions(cls, options):
    """A row's numbers are those of its own steps, in both directions and layers; padding, NaN too, reaches
    nothing; resets begin from zero."""
    layer = build(cls, options, num_layers=2, bidirectional=True)
    x = randn(6, 4, IN, dtype=torch.float64)
    hx = randn(4, 4, H, dtype=torch.float64, seed=4)
    lengths = torch.tensor([6, 4, 1, 0])
    padded = x.clone()
    for row, n in enumerate(lengths):
        padded[n:, row] = float("nan")
    y, h = layer(padded.requires_grad_(), hx, lengths=lengths)
    for row, n in enumerate(lengths.tolist()):
        assert not y[n:, row].any()
        if not n:
            assert torch.equal(h[:, row], hx[:, row])
            continue
        own, last = layer(x[:n, row], hx[:, row])
        assert_close(y[:n, row], own, torch.float64)
        assert_close(h[:, row], last, torch.float64)
    found = torch.autograd.grad(y.sum() + h.sum(), [padded, *layer.parameters()])
    assert all(torch.isfinite(g).all() for g in found)

    one = build(cls, options, bidirectional=True)
    reset = torch.zeros(6, 4, dtype=torch.bool)
    reset[2] = True
    y, _ = one(x, hx[:2], reset=reset)
    assert_close(y[2:, :, :H], one(x[2:])[0][..., :H], torch.float64)
    assert_close(y[:2, :, H:], one(x[:2])[0][..., H:], torch.float64)
    y, h = one(x, hx[:2], reset=reset, lengths=lengths)
    assert_close(y[2:4, 1, :H], one(x[2:4, 1])[0][:, :H], torch.float64)
    assert_close(y[:2, 1, H:], one(x[:2, 1])[0][:, H:], torch.float64)
    assert_close(h[1, 2], one(x[:1, 2], hx[:2, 2])[1][1], torch.float64)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_derivatives(cls, options):
    """First and second derivatives, with lengths and resets, agree with finite differences."""
    layer = build(cls, options, bidirectional=True)
    names = [n for n, _ in layer.named_parameters()]
    reset = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 0]]).bool()

    def call(x, hx, *weights):
        given = dict(zip(names, weights, strict=True))
        options = {"lengths": torch.tensor([4, 3]), "reset": reset}
        return torch.func.functional_call(layer, given, (x, hx), options)

    x = randn(4, 2, IN, dtype=torch.float64).requires_grad_()
    hx = randn(2, 2, H, dtype=torch.float64, seed=3).requires_grad_()
    inputs = (x, hx, *(p.detach().requires_grad_() for p in layer.parameters()))
    torch.autograd.gradcheck(call, inputs, fast_mode=True)
    torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_as_modules(cls, options):
    """step() gives the numbers of one call; copies, pickles, half types, autocast, batch_first, dropout."""
    layer = build(cls, options, dtype=torch.float32, batch_first=True, num_layers=2, dropout=0.5).eval()
    x = randn(2, 20, IN)
    y, h = layer(x)
    state = None
    for t in range(20):
        out, state = layer.step(x[:, t], state)
        assert_close(out, y[:, t], torch.float32)
    assert_close(state, h, torch.float32)
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(made(x)[0], y)
        assert repr(made) == repr(layer)
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.reset_parameters()
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert not torch.equal(layer.train()(x)[0], y)
    half = copy.deepcopy(layer).eval().bfloat16()
    assert_close(half(x.bfloat16())[0], layer.eval()(x)[0], torch.bfloat16, slack=4)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)[0].float().sum().backward()
    assert layer.weight_ih_l0.grad.dtype == torch.float32


@pytest.mark.parametrize(("cls", "options"), [KINDS[1], KINDS[2], KINDS[5]])
def test_compiled_exported_and_transformed(cls, options):
    """One graph for torch.compile, T and B open for torch.export, torch.func by the reference."""
    layer = build(cls, options, bidirectional=True)
    x = randn(18, 2, IN, dtype=torch.float64)
    want, _ = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x)[0], want, torch.float64)
    weights = list(layer.parameters())
    found = [torch.autograd.grad(f(x)[0].square().sum(), weights) for f in (compiled, layer)]
    for a, b in zip(*found, strict=True):
        assert_close(a, b, torch.float64, gradient=True)
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(layer, (x,), dynamic_shapes=shapes).module()
    other = randn(33, 3, IN, dtype=torch.float64)
    assert_close(program(other)[0], layer(other)[0], torch.float64)
    rows = torch.func.vmap(lambda x: layer(x)[0], 1, 1)(x)
    assert_close(rows, want, torch.float64)
    _, tangent = torch.func.jvp(lambda x: layer(x)[0].sum(), (x,), (torch.ones_like(x),))
    given = x.clone().requires_grad_()
    assert_close(tangent, torch.autograd.grad(layer(given)[0].sum(), given)[0].sum(), torch.float64)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "size", [(1, 2, 3), (15, 2, 3), (16, 2, 3), (37, 2, 3), (65, 1, 1), (20, 3, 1000), (4, 0, 3)]
)
def test_linear_scan(size, reverse):
    """Both ways through time are the definition: in chunks that do not divide T, and step by step."""
    a, b, h0 = (randn(*s, dtype=torch.float64, seed=i) for i, s in enumerate((size, size, size[1:])))
    for start in (None, h0):
        got = functional.linear_scan(a, b, start, reverse=reverse)
        assert_close(got, reference.linear_scan(a, b, start, reverse=reverse), torch.float64)
        if got.numel() and size[0] > 4:
            assert_close(op._in_chunks(a, b, start, None, reverse), got, torch.float64)
            assert_close(op._one_by_one(a, b, start, None, reverse), got, torch.float64)


def test_linear_scan_rows():
    """Lengths and resets, in gradients too; a row's padding, NaN too, reaches nothing."""
    a, b = randn(20, 3, 4, dtype=torch.float64), randn(20, 3, 4, dtype=torch.float64, seed=2)
    a[7:, 1] = float("nan")
    a.requires_grad_()
    reset = torch.zeros(20, 3, dtype=torch.bool)
    reset[3] = True
    for reverse in (False, True):
        h = functional.linear_scan(a, b, lengths=[20, 7, 0], reset=reset, reverse=reverse)
        part = functional.linear_scan(a[3:7, 1:2], b[3:7, 1:2], reverse=reverse)
        assert_close(h[3:7, 1:2], part, torch.float64)
        assert not h[7:, 1].any()
        assert torch.isfinite(torch.autograd.grad(h.sum(), a)[0]).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [(8, 2, 3), (40, 2, 3), (20, 3, 1000)])
def test_linear_scan_begins_anew(size, reverse):
    """Nothing passes a reset, no NaN and no infinity of the sequence before either, forward and backward:
    step by step, in chunks and by the definition."""
    steps, rows = size[:2]
    reset = torch.zeros(steps, rows, dtype=torch.bool)
    reset[5] = True
    a, b, h0 = (randn(*s, dtype=torch.float64, seed=i) for i, s in enumerate((size, size, size[1:])))
    clean = functional.linear_scan(a, b, h0, reset=reset, reverse=reverse)
    own = slice(5, None) if reverse else slice(0, 5)  # the sequence that is spoilt
    other = slice(0, 5) if reverse else slice(5, None)
    grad = torch.ones_like(clean)
    grad[other] = float("nan")
    for bad in (float("nan"), float("inf")):
        spoilt = b.clone()
        spoilt[own] = bad
        for run in (functional.linear_scan, reference.linear_scan):
            h = run(a, spoilt, h0, reset=reset, reverse=reverse)
            assert_close(h[other], clean[other], torch.float64)
        zeroed, _, cut = reference.linear.coefficients(a, spoilt, None, reset, reverse)
        found = op._in_chunks(zeroed, spoilt, h0, cut, reverse)
        assert_close(found[other], clean[other], torch.float64)
    leaves = [t.clone().requires_grad_() for t in (a, b, h0)]
    h = functional.linear_scan(*leaves, reset=reset, reverse=reverse)
    of_a, of_b, of_h0 = torch.autograd.grad(h, leaves, grad)
    assert of_a[own].isfinite().all()
    assert of_b[own].isfinite().all()
    assert of_h0.isfinite().all()


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_layers_begin_anew(cls, options):
    """The same of the layers."""
    layer = build(cls, options, bidirectional=True)
    x = randn(40, 2, IN, dtype=torch.float64)
    reset = torch.zeros(40, 2, dtype=torch.bool)
    reset[6] = True
    want, _ = layer(x, reset=reset)
    before, after = x.clone(), x.clone()
    before[3], after[30] = float("nan"), float("nan")
    assert_close(layer(before, reset=reset)[0][6:, :, :H], want[6:, :, :H], torch.float64)
    assert_close(layer(after, reset=reset)[0][:6, :, H:], want[:6, :, H:], torch.float64)
    x.requires_grad_()
    y, _ = layer(x, reset=reset)
    grad = torch.ones_like(y)
    grad[30] = float("nan")
    assert torch.autograd.grad(y, x, grad)[0][:6].isfinite().all()


def test_products_beyond_all_numbers():
    """Of a state of zero nothing is left, however much it is multiplied."""
    a, b = torch.full((64, 1, 2), 1e30), torch.zeros(64, 1, 2)
    for reverse in (False, True):
        assert not functional.linear_scan(a, b, reverse=reverse).any()
    layer = build(fastrnn.IndRNN, {}, dtype=torch.float32)
    with torch.no_grad():
        layer.weight_hh_l0.fill_(1e4)
        layer.weight_ih_l0.zero_()
        layer.bias_ih_l0.fill_(1.0)
    x = randn(400, 1, IN).requires_grad_()
    layer(x)[0][0].sum().backward()
    assert x.grad.isfinite().all()
    assert layer.bias_ih_l0.grad.isfinite().all()


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_output_may_be_edited(cls, options):
    """As after torch's layers, a residual added in place changes no gradient."""
    layer = build(cls, options)
    for x in (randn(1, 2, IN), randn(20, 2, IN), randn(20, IN)):
        x = x.double().requires_grad_()
        y, h = layer(x)
        want = torch.autograd.grad((y * y).sum() + h.sum(), x, retain_graph=True)[0]
        y.add_(1)
        h.add_(1)
        got = torch.autograd.grad((2 * (y.detach() - 1) * y).sum() + h.sum(), x)[0]
        assert_close(got, want, torch.float64, gradient=True)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_traced_and_scripted(cls, options):
    """A trace, of a single step too, computes sequences of other lengths; TorchScript has no form of it."""
    layer = build(cls, options)
    other = randn(33, 5, IN, dtype=torch.float64)
    for steps in (1, 20):
        traced = torch.jit.trace(layer, randn(steps, 2, IN, dtype=torch.float64))
        assert_close(traced(other)[0], layer(other)[0], torch.float64)
    with pytest.raises(RuntimeError, match=f"{cls.__name__} has no form in TorchScript"):
        torch.jit.script(layer)


def test_linear_scan_of_half_types():
    """Computed in float32, rounded once."""
    a, b = torch.rand(50, 2, 8).bfloat16(), randn(50, 2, 8).bfloat16()
    want = reference.linear_scan(a.double(), b.double())
    assert_close(functional.linear_scan(a, b), want, torch.bfloat16)


WRONG = [
    (lambda: functional.linear_scan(torch.zeros(2, 3), torch.zeros(2, 3)), "a"),
    (lambda: functional.linear_scan(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)), "b"),
    (lambda: functional.linear_scan(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(3, 5)), "h0"),
    (
        lambda: functional.linear_scan(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), lengths=[3, 1, 1]),
        "lengths",
    ),
    (lambda: fastrnn.MinGRU(IN, 0), "hidden_size must be greater than zero"),
    (lambda: fastrnn.MinGRU(IN, H, log_space=1), "log_space should be of type bool"),
    (lambda: fastrnn.IndRNN(IN, H, nonlinearity="x"), "nonlinearity should be"),
    (lambda: fastrnn.MinLSTM(IN, H, dropout=2.0), "dropout"),
    (lambda: fastrnn.MinGRU(IN, H, dtype=torch.complex64), "expected real numbers"),
    (lambda: fastrnn.MinGRU(IN, H)(torch.zeros(2, 3, 4)), "input_size"),
    (lambda: fastrnn.MinGRU(IN, H)(torch.zeros(2, 3, IN), torch.zeros(1, 2, H)), "Expected hidden size"),
    (lambda: fastrnn.MinGRU(IN, H)(torch.zeros(2, 3, IN).double()), "does not match weight dtype"),
    (lambda: fastrnn.MinGRU(IN, H)(torch.zeros(2, 3, IN), torch.zeros(1, 3, H).double()), "same dtype"),
    (
        lambda: fastrnn.IndRNN(IN, H)(torch.zeros(2, 3, IN), torch.zeros(1, 3, H, device="meta")),
        "same device",
    ),
    (lambda: fastrnn.MinGRU(IN, H)(torch.nested.nested_tensor([torch.zeros(2, IN)])), "dense Tensor"),
    (lambda: fastrnn.MinLSTM(IN, H, dtype="float32"), "torch.dtype"),
    (lambda: fastrnn.MinGRU(IN, H, bidirectional=True).step(torch.zeros(3, IN)), "one direction"),
]


@pytest.mark.parametrize(("call", "text"), WRONG)
def test_wrong_arguments(call, text):
    """One error that names the argument."""
    with pytest.raises((ValueError, RuntimeError, TypeError), match=text):
        call()


@pytest.mark.parametrize("bias", [True, False])
def test_large_products(bias):
    """A layer's product beyond a size is oneDNN's where there is one: the numbers of torch's own, derivatives
    and second derivatives too, and weights may be edited only as after torch's."""
    x, weight = randn(20, 16, 128).requires_grad_(), randn(256, 128, seed=2).requires_grad_()
    given = (x, weight, randn(256, seed=3).requires_grad_() if bias else None)
    leaves = [t for t in given if t is not None]
    found = []
    for run in (product, torch.nn.functional.linear):
        y = run(*given)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([y, *first, *second])
    for a, b in zip(*found, strict=True):
        assert_close(a, b, torch.float32, gradient=True)
    for a in torch.autograd.grad(product(*given).square().sum(), leaves):  # that nobody differentiates again
        i = next(i for i, t in enumerate(leaves) if t.shape == a.shape)
        assert a.is_contiguous()
        assert_close(a, found[1][1 + i], torch.float32, gradient=True)
    with pytest.raises(RuntimeError, match="same dtype"):  # as torch says it
        product(x, weight, randn(256, seed=3).double())
    y = product(*given)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
