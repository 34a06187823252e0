"""SRU and SRU++ in torch's machinery: pickles, dtypes, derivatives of all kinds, compilers."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers import randn
from sru_models import F64, IN, MODELS, PAD, B, L, models, models_but
from tolerances import assert_close

import fastrnn


@models
def test_pickle_and_copy(build):
    """Pickles, deep copies and saved modules compute the same; so does a module moved to another dtype."""
    module, x = build(), randn(L, B, IN, dtype=F64)
    expected = module(x)[0]
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), saved):
        assert torch.equal(other(x)[0], expected)
    assert_close(module.float()(x.float())[0], expected, torch.float32, slack=4)
    assert "SRU" in repr(module)


@models
def test_half_types(build):
    """bfloat16 and float16 modules run, forward and backward, and are near float64."""
    module, x = build(), randn(L, B, IN, dtype=F64)
    expected = module(x)[0]
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(module).to(dtype)
        h = half(x.to(dtype))[0]
        assert h.dtype == dtype
        h.float().sum().backward()
        assert (h.double() - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("name", ["SRU k3", "SRU bidirectional"])
def test_autocast(name, fp16):
    """amp_recurrence_fp16 says whether the recurrence stays in the half type."""
    module = MODELS[name](dtype=torch.float32, amp_recurrence_fp16=fp16)
    x = randn(L, B, IN).requires_grad_()
    expected = module(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, c = module(x)
    assert h.dtype == (torch.bfloat16 if fp16 else torch.float32)
    assert (h.float() - expected).abs().max() <= 0.05 * expected.abs().max()
    (h.float().sum() + c.float().sum()).backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


@models_but("SRU k3", "SRU bidirectional", "SRUpp bidirectional")
def test_double_backward(build):
    """Gradients of gradients, for gradient penalties and Hessians, equal finite differences."""
    module = build()
    x = randn(3, 2, IN, dtype=F64).requires_grad_()
    weight = module.rnn_lst[0].weight_c
    assert torch.autograd.gradcheck(lambda x, w: module(x)[0], (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: module(x)[0], (x, weight))


@models
def test_functional_transforms(build):
    """torch.func: per-sample gradients, forward mode and vmap agree with loops and backward."""
    module = build()
    x = randn(L, B, IN, dtype=F64)
    params = dict(module.named_parameters())

    def loss(params, sample):
        return torch.func.functional_call(module, params, (sample.unsqueeze(1),))[0].pow(2).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(params, x)
    for b in range(B):
        module.zero_grad()
        loss(params, x[:, b]).backward()
        for name, p in params.items():
            torch.testing.assert_close(each[name][b], p.grad)
    tangent = randn(L, IN, dtype=F64, seed=9)
    _, forward = torch.func.jvp(lambda s: loss(params, s), (x[:, 0],), (tangent,))
    backward = torch.func.grad(lambda s: loss(params, s))(x[:, 0])
    torch.testing.assert_close(forward, (backward * tangent).sum())


@models_but("SRU", "SRU k3", "SRUpp bidirectional")
def test_compile(build):
    """torch.compile in one graph, in training and inference, with other lengths: the eager results."""
    torch._dynamo.reset()  # the limit of recompilations is one a function, not one a module
    module = build()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (L, 3):
        x = randn(length, B, IN, dtype=F64).requires_grad_()
        y = x.detach().clone().requires_grad_()
        h, c, *_ = module(x, mask_pad=PAD[:length])
        hc, cc, *_ = compiled(y, mask_pad=PAD[:length])
        torch.testing.assert_close(hc, h)
        torch.testing.assert_close(cc, c)
        (h.sum() + c.sum()).backward()
        (hc.sum() + cc.sum()).backward()
        torch.testing.assert_close(y.grad, x.grad)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x)[0], module(x)[0])


@pytest.mark.parametrize("name", ["SRU", "SRU bidirectional", "SRUpp"])
def test_export(name):
    """torch.export with dynamic length and batch runs at other sizes."""
    module = MODELS[name]().eval()
    length, batch = torch.export.Dim("length", min=2, max=64), torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        module, (randn(L, B, IN, dtype=F64),), dynamic_shapes=({0: length, 1: batch},), strict=False
    ).module()
    x = randn(11, 3, IN, dtype=F64)
    torch.testing.assert_close(program(x)[0], module(x)[0])


def test_backends_agree():
    """backend="fused" and "reference" agree, and "fused" raises where no kernel covers the case."""
    for name, build in MODELS.items():
        x = randn(L, B, IN, dtype=F64)
        fused, plain = build(backend="fused"), build(backend="reference")
        torch.testing.assert_close(fused(x, mask_pad=PAD)[0], plain(x, mask_pad=PAD)[0], msg=name)
    with pytest.raises(RuntimeError, match=r"no kernel covers torch\.func"):
        torch.func.vmap(fused, in_dims=1)(x.unsqueeze(2))


def test_large_products():
    """Products large enough for oneDNN: outputs, gradients and gradients of gradients are the reference's."""
    module = fastrnn.SRU(64, 64, 1)
    x = randn(128, 8, 64).requires_grad_()
    wide, y = copy.deepcopy(module).double(), x.detach().double().requires_grad_()
    found = []
    for m, v in ((module, x), (wide, y)):
        h = m(v)[0]
        inputs = (v, m.rnn_lst[0].transform_module.weight)
        first = torch.autograd.grad(h.pow(2).mean(), inputs, create_graph=True)
        plain = torch.autograd.grad(m(v)[0].pow(2).mean(), inputs)
        second = torch.autograd.grad(first[0].pow(2).sum(), inputs)
        found.append((h, *first, *plain, *second))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, torch.float32, gradient=True, slack=2)
