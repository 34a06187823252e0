"""scaled_dot_product_attention of torch for SRU++: pads, rows without keys, derivatives of every order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .._ops import torch_state
from .._ops.torch_state import tracing, transformed


def _plain(q, k, v, bias, causal):
    """In torch's own operations, which have all derivatives and batching rules."""
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v, bias, is_causal=causal)


class _Attention(torch.autograd.Function):
    """Fused attention, whose backward torch cannot differentiate: create_graph=True goes the plain way.

    The graph of the fused call is kept in ctx and asked for its gradients.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, causal):
        ctx.save_for_backward(q, k, v, bias)
        ctx.causal = causal
        with torch.enable_grad():
            ctx.leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            ctx.result = scaled_dot_product_attention(*ctx.leaves, bias, is_causal=causal)
        return ctx.result.detach()

    @staticmethod
    def backward(ctx, grad):
        if not torch_state.gradients():
            return *torch.autograd.grad(ctx.result, ctx.leaves, grad, retain_graph=True), None, None
        q, k, v, bias = ctx.saved_tensors
        with torch.enable_grad():
            # Views stand in for the tensors, which may be the same or depend on each other.
            views = [t.view_as(t) for t in (q, k, v)]
            result = _plain(*views, bias, ctx.causal)
            return *torch.autograd.grad(result, views, grad, create_graph=True), None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    key_pad: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ / sqrt(d) + attn_mask) v, and 0 for a query that may see no key.

    Args:
        q: (B, heads, L, d). k, v: (B, heads, S, d).
        attn_mask: (L, S), added to the scores; -inf where a query must not look.
        key_pad: (B, S) bool, True for keys that nobody sees.
        is_causal: query i sees keys up to i + S - L; not together with attn_mask.
        dropout: probability, on the softmax.

    Returns:
        (B, heads, L, d).
    """
    length, source = q.size(-2), k.size(-2)
    bias = blind = None
    if is_causal and (key_pad is not None or length != source):
        future = torch.ones(length, source, dtype=torch.bool, device=q.device).triu(source - length + 1)
        attn_mask = torch.zeros(length, source, dtype=q.dtype, device=q.device)
        attn_mask, is_causal = attn_mask.masked_fill(future, -torch.inf), False
    if attn_mask is not None or key_pad is not None:
        # With every -inf made finite no backend meets a row of them, whose softmax is NaN; a query whose best
        # key is masked has none, and its row is set to 0.
        lowest = torch.finfo(q.dtype).min / 2
        if attn_mask is not None:
            bias = attn_mask.to(q.dtype).clamp(min=lowest)[None, None]
        if key_pad is not None:
            pads = key_pad[:, None, None, :]
            bias = q.new_zeros(()) if bias is None else bias
            bias = torch.where(pads, lowest, bias.expand(key_pad.size(0), 1, length, source))
        blind = bias.detach().amax(-1, keepdim=True) <= lowest
    if q.numel() == 0 or source == 0:
        return q * 0
    # The fused kernels have first derivatives in reverse mode, and none for the bias.
    needs_grad = torch_state.gradients() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if transformed():
        with sdpa_kernel(SDPBackend.MATH):
            result = scaled_dot_product_attention(q, k, v, bias, dropout, is_causal)
    elif (
        not needs_grad
        or torch_state.compiling()
        or tracing()
        or dropout
        or (bias is not None and bias.requires_grad)
    ):
        result = scaled_dot_product_attention(q, k, v, bias, dropout, is_causal)
    else:
        result = _Attention.apply(q, k, v, bias, is_causal)
    return result if blind is None else result.masked_fill(blind, 0)
