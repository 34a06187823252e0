"""The attention of SRU++: memory, masks, chunks of a sequence."""

from __future__ import annotations

import pytest
import torch
from helpers import randn
from sru_models import F64, IN, LENGTHS, MODELS, PAD, B, H, L, make
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def test_packed_memory():
    """SRU++ with a packed batch: memory and its mask are in the order of the sequences."""
    module = MODELS["SRUpp"]()
    x = randn(L, B, IN, dtype=F64)
    memory = [randn(3, B, n, dtype=F64, seed=4) for n in (IN, H)]
    memory_mask_pad = torch.arange(3)[:, None] < torch.tensor([0, 2, 1, 3])
    masks = {"memory": memory, "memory_mask_pad": memory_mask_pad}
    h, c, saved = module(x, mask_pad=PAD, **masks)
    hp, cp, savedp = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), **masks)
    torch.testing.assert_close(pad_packed_sequence(hp)[0], h)
    torch.testing.assert_close(cp, c)
    torch.testing.assert_close(savedp["saved_inputs"][1], saved["saved_inputs"][1])
    torch.testing.assert_close(savedp["saved_inputs"][0], x.masked_fill(PAD[..., None], 0))


@pytest.mark.parametrize("memory_norm", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"layer_norm": True}, {"layer_norm": True, "normalize_after": True}, {"num_heads": 2}]
)
def test_truncated_backpropagation(options, memory_norm):
    """Chunks with c and saved_inputs equal the whole sequence exactly, outputs and gradients.

    With the norm before the transform the package leaves the memory as it is: there they differ by default,
    and agree with normalize_memory.
    """
    module = make(4, kind="SRUpp", num_layers=3, normalize_memory=memory_norm, **options)
    x = randn(L, B, IN, dtype=F64)
    whole, c_whole, saved_whole = module(x, is_causal=True)
    whole.pow(2).sum().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    outputs, c, memory = [], None, None
    for chunk in x.split([3, 2, 2]):
        h, c, saved = module(chunk, c, memory=memory, is_causal=True)
        new = saved["saved_inputs"]
        memory = new if memory is None else [torch.cat(pair) for pair in zip(memory, new, strict=True)]
        outputs.append(h)
    chunked = torch.cat(outputs)
    exact = memory_norm or not options.get("layer_norm") or options.get("normalize_after")
    if not exact:
        assert not torch.allclose(chunked, whole)
        return
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(c, c_whole)
    for a, b in zip(memory, saved_whole["saved_inputs"], strict=True):
        torch.testing.assert_close(a, b)
    chunked.pow(2).sum().backward()
    for p, e in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, e)


def test_is_causal():
    """is_causal is the additive mask of -inf above the diagonal, with pads, memory and packed rows too."""
    module = MODELS["SRUpp"]()
    x = randn(L, B, IN, dtype=F64)
    memory = [randn(2, B, n, dtype=F64, seed=4) for n in (IN, H)]
    for past, masks in ((0, {}), (0, {"mask_pad": PAD}), (2, {"memory": memory, "mask_pad": PAD})):
        mask = torch.full((L, past + L), -torch.inf, dtype=F64).triu(past + 1)
        expected = module(x, attn_mask=mask, **masks)[0]
        torch.testing.assert_close(module(x, is_causal=True, **masks)[0], expected)
    packed = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), is_causal=True)[0]
    torch.testing.assert_close(pad_packed_sequence(packed)[0], module(x, is_causal=True, mask_pad=PAD)[0])
    changed = x.clone()
    changed[4:] += 1
    assert torch.equal(module(changed, is_causal=True)[0][:4], module(x, is_causal=True)[0][:4])


@pytest.mark.parametrize("mask", ["pads first", "row of -inf"])
def test_query_without_keys(mask):
    """A query that may see no key gets nothing from attention; the others are as without it."""
    attention = make(kind="SRUpp", proj_size=4).rnn_lst[0].transform_module
    x = randn(L, B, IN, dtype=F64).requires_grad_()
    if mask == "pads first":
        options = {"mask_pad": torch.arange(L)[:, None].expand(L, B) < 1, "is_causal": True}
    else:
        options = {"attn_mask": torch.full((L, L), -torch.inf, dtype=F64).triu(0)}
    u = attention(x, **options)
    plain = attention.linear3(attention.layer_norm(attention.linear1(x)))
    torch.testing.assert_close(u[0], plain[0])
    assert not torch.allclose(u[1:], plain[1:])
    u.pow(2).sum().backward()
    assert x.grad.isfinite().all()


def test_learned_attention_bias():
    """attn_mask may be learned: it gets its gradient."""
    module = MODELS["SRUpp"]()
    bias = randn(L, L, dtype=F64).requires_grad_()
    x = randn(L, B, IN, dtype=F64)
    assert torch.autograd.gradcheck(lambda b: module(x, attn_mask=b)[0], bias)
