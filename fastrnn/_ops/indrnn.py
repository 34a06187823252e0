"""The operator ``fastrnn::indrnn``: h_t = act(gx_t + weight * h_{t-1}), with its derivatives.

On the CPU it is the kernel of ``fastrnn::elementwise_forward``. In torch's operations the step needs the one
before it, so forward goes one by one; the derivative is linear in the state, and so a ``linear_scan`` the
other way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._cells import widen
from . import fakes, library, torch_state
from .linear_scan import by_kernel, following
from .linear_scan import scan as linear_scan


@torch.library.custom_op("fastrnn::indrnn", mutates_args=())
def scan(gx: Tensor, weight: Tensor, h0: Tensor, cut: Tensor | None, relu: bool) -> Tensor:
    """gx (T, B, H), weight (H,), h0 (B, H); cut (T, B) bool, where a step begins from zero. Returns h of
    every step, in gx's dtype."""
    dtype = gx.dtype
    if by_kernel(gx):
        return library.elementwise_forward(_name(relu), gx, None, weight, h0, None, cut, False)[0]
    gx, weight, h = widen(gx), widen(weight), widen(h0)
    out = torch.empty(gx.shape, dtype=gx.dtype, device=gx.device)
    cut = None if cut is None else cut.unsqueeze(-1)
    act = torch.relu_ if relu else torch.tanh_
    for t in range(gx.size(0)):
        start = h if cut is None else h.masked_fill(cut[t], 0)
        h = act(torch.addcmul(gx[t], weight, start, out=out[t]))
    return out.to(dtype)


def _name(relu: bool) -> str:
    return "indrnn_relu" if relu else "indrnn_tanh"


@scan.register_fake
def _(gx, weight, h0, cut, relu):
    fakes.same_device(gx, weight, h0, cut)
    return torch.empty_like(gx, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output) -> None:
    gx, weight, h0, cut, ctx.relu = inputs
    ctx.save_for_backward(gx, weight, h0, cut, output)


def _backward(ctx, grad):
    gx, weight, h0, cut, h = ctx.saved_tensors
    if by_kernel(h) and not torch_state.differentiable(grad):
        of_gx, _, of_weight, of_h0 = library.elementwise_backward(
            _name(ctx.relu), grad, None, gx, None, weight, h0, None, cut, h, False, 13
        )
        return of_gx, of_weight, of_h0, None, None
    slope = (h > 0).to(h.dtype) if ctx.relu else 1 - h * h
    before = torch.cat([h0.unsqueeze(0), h[:-1]])
    # That of the pre-activation at t: slope_t * (grad_t + weight * what step t+1 has).
    kept, then = slope * following(weight.expand_as(h), False), None
    if cut is not None:
        then = following(cut, False)
        before = before.masked_fill(cut.unsqueeze(-1), 0)
        kept = kept.masked_fill(then.unsqueeze(-1), 0)
    g = linear_scan(kept, slope * grad, None, then, True)
    to_h0 = weight * g[0]
    if cut is not None:
        to_h0 = to_h0.masked_fill(cut[0].unsqueeze(-1), 0)
    return g, (g * before).sum((0, 1)), to_h0, None, None


scan.register_autograd(_backward, setup_context=_setup)
