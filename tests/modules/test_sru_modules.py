"""SRU beyond the package: layouts, packed batches, empty sizes, masks, states."""

from __future__ import annotations

import pytest
import torch
from helpers import randn
from sru_models import F64, IN, LENGTHS, PAD, B, H, L, make, models
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastrnn import functional


@models
def test_batch_first(build):
    """batch_first is a transposition of input, mask and output, and c keeps its shape."""
    a, b = build(), build(batch_first=True)
    x = randn(L, B, IN, dtype=F64)
    h, c, *rest = a(x, mask_pad=PAD)
    hb, cb, *restb = b(x.transpose(0, 1), mask_pad=PAD.t())
    torch.testing.assert_close(hb, h.transpose(0, 1))
    torch.testing.assert_close(cb, c)
    for saved, savedb in zip(rest, restb, strict=True):
        for s, sb in zip(saved["saved_inputs"], savedb["saved_inputs"], strict=True):
            torch.testing.assert_close(sb, s.transpose(0, 1))


@models
def test_packed(build):
    """A packed batch gives what each sequence gives alone, gradients included, in the order of the input."""
    module = build()
    x = randn(L, B, IN, dtype=F64).requires_grad_()
    h, c, *_ = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
    h = pad_packed_sequence(h)[0]
    (h.pow(2).sum() + c.pow(2).sum()).backward()
    packed = [x.grad, *(p.grad for p in module.parameters())]

    module.zero_grad()
    y = x.detach().clone().requires_grad_()
    for b, n in enumerate(LENGTHS.tolist()):
        hb, cb, *_ = module(y[:n, b : b + 1])
        torch.testing.assert_close(h[:n, b : b + 1], hb)
        torch.testing.assert_close(c[:, b : b + 1], cb)
        (hb.pow(2).sum() + cb.pow(2).sum()).backward()
    alone = [y.grad, *(p.grad for p in module.parameters())]
    for a, b in zip(packed, alone, strict=True):
        torch.testing.assert_close(a, b)


@models
def test_masked_equals_packed(build):
    """A mask and a PackedSequence say the same, with c0 in the order of the input."""
    module = build()
    x = randn(L, B, IN, dtype=F64)
    c0 = randn(2, B, module.output_size, dtype=F64, seed=2)
    h, c, *_ = module(x, c0, PAD)
    hp, cp, *_ = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), c0)
    torch.testing.assert_close(pad_packed_sequence(hp)[0], h)
    torch.testing.assert_close(cp, c)
    assert not h[PAD].any()


def test_no_padding_in_packed_products():
    """The matrix products of a packed batch see its own rows and nothing else."""
    seen = []
    module = make(projection_size=3)
    for m in module.modules():
        if isinstance(m, nn.Linear):
            m.register_forward_hook(lambda m, args, out: seen.append(args[0].shape))
    module(pack_padded_sequence(randn(L, B, IN, dtype=F64), LENGTHS, enforce_sorted=False))
    assert len(seen) == 4
    assert all(shape[:-1] == (int(LENGTHS.sum()),) for shape in seen)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("length", "batch"), [(L, 0), (0, B), (0, 0), (1, 1)])
@models
def test_empty(build, length, batch, backend):
    """No rows, no steps, one of each: outputs of the right size, c0 passed on, zero gradients."""
    module = build(backend=backend)
    x = torch.randn(length, batch, IN, dtype=F64, requires_grad=True)
    c0 = torch.randn(2, batch, module.output_size, dtype=F64)
    h, c, *_ = module(x, c0)
    assert h.shape == (length, batch, module.output_size)
    assert c.shape == c0.shape
    if not length:
        assert torch.equal(c, c0)
    (h.sum() + c.sum()).backward()
    assert x.grad.shape == x.shape
    for p in module.parameters():
        assert p.grad is None or p.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float32])
@models
def test_mask_dtypes(build, dtype):
    """A mask of any dtype, pads where it is not zero: 2 is as much a pad as 1."""
    module, x = build(), randn(L, B, IN, dtype=F64)
    expected = module(x, mask_pad=PAD)[:2]
    for one in (1, 2):
        found = module(x, mask_pad=PAD.to(dtype) * (1 if dtype == torch.bool else one))[:2]
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


@models
def test_fully_padded_row(build):
    """A row without a single step: h is 0, c is c0, and nothing, gradients included, is NaN."""
    module = build()
    x = randn(L, B, IN, dtype=F64).requires_grad_()
    pad = PAD.clone()
    pad[:, 2] = True
    c0 = randn(2, B, module.output_size, dtype=F64)
    h, c, *_ = module(x, c0, pad)
    assert not h[:, 2].any()
    assert torch.equal(c[:, 2], c0[:, 2])
    (h.pow(2).sum() + c.pow(2).sum()).backward()
    for g in (x.grad, *(p.grad for p in module.parameters())):
        assert g.isfinite().all()
    assert not x.grad[:, 2].any()
    alone = module(x[:, :2].detach(), c0[:, :2], pad[:, :2])[0]
    torch.testing.assert_close(h[:, :2], alone)


def test_states_shaped_like_torchs():
    """nn_rnn_compatible_return: c as nn.GRU shapes it; and c0 is understood in either shape."""
    ours, package = make(bidirectional=True, nn_rnn_compatible_return=True), make(bidirectional=True)
    x, c0 = randn(L, B, IN, dtype=F64), randn(4, B, H, dtype=F64)
    other = c0.view(2, 2, B, H).transpose(1, 2).reshape(2, B, 2 * H)
    h, c = ours(x, c0)
    hp, cp = package(x, other)
    assert c.shape == (4, B, H)
    assert torch.equal(h, hp)
    assert torch.equal(c.view(2, 2, B, H).transpose(1, 2).reshape(2, B, 2 * H), cp)
    again = ours(x, other)[1]
    assert torch.equal(again, c)


def test_steps_one_at_a_time():
    """A cell stepped by hand on (B, I) gives what it gives on the sequence."""
    cell = make(kind="SRUCell", layer_norm=True, normalize_after=False)
    x = randn(L, B, IN, dtype=F64)
    h, last = cell(x)
    c = None
    for t in range(L):
        step, c = cell(x[t], c)
        assert step.shape == (B, H)
        torch.testing.assert_close(step, h[t])
    torch.testing.assert_close(c, last)
    masked = cell(x[0], last, mask_pad=torch.tensor([1, 0, 1, 0]))
    assert torch.equal(masked[1][0], last[0])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_functional(backend):
    """functional.sru is a layer of the module, packed or not; functional.sru_scan checks its arguments."""
    cell = make(kind="SRUCell", bidirectional=True, use_tanh=True)
    x = randn(L, B, IN, dtype=F64)
    options = {"bidirectional": True, "use_tanh": True, "backend": backend}
    weights = cell.transform_module.weight, cell.weight_c, cell.bias
    found = functional.sru(x, None, *weights, mask_pad=PAD.long(), **options)
    for a, b in zip(found, cell(x, mask_pad=PAD), strict=True):
        torch.testing.assert_close(a, b)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    h, _ = functional.sru(packed.data, None, *weights, batch_sizes=packed.batch_sizes, **options)
    torch.testing.assert_close(h, cell(packed)[0].data)

    u, c0 = randn(L, B, 3, H, dtype=F64), randn(B, H, dtype=F64)
    pair = randn(2, H, dtype=F64)
    for arguments, message in (
        ((u[:, :, :2], None, pair, pair, c0), "u should be"),
        ((u, None, pair[:1], pair, c0), "weight_c should have size"),
        ((u, None, pair, pair.float(), c0), "bias should be torch.float64"),
        ((u, c0, pair, pair, c0), "x should have size"),
        ((u, None, pair, pair, c0[:1]), "c0 should have size"),
    ):
        with pytest.raises(ValueError, match=message):
            functional.sru_scan(*arguments, backend=backend)


def test_dropout_masks_are_constant_in_time():
    """rnn_dropout and dropout draw one mask a sequence, in the order of the sequences, packed or not."""
    module = make(dropout=0.5, rnn_dropout=0.5, num_layers=3)
    x = randn(L, B, IN, dtype=F64)
    torch.manual_seed(1)
    masked = module(x, mask_pad=PAD)[0]
    torch.manual_seed(1)
    packed = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))[0]
    torch.testing.assert_close(pad_packed_sequence(packed)[0], masked)
    assert not torch.allclose(masked, module.eval()(x, mask_pad=PAD)[0])
    dropped = make(dropout=1.0, num_layers=1, kind="SRU").rnn_lst[0]
    dropped.dropout = 1.0
    assert dropped(x)[0].isfinite().all()
