"""The operator ``fastrnn::linear_scan``: h_t = a_t * h_{t-1} + b_t over whole sequences, with its
derivatives.

Written with torch's operations, so it runs on every device. Two ways through time: step by step, one fused
multiply-add a step, where a step is work enough for that; else in chunks, whose steps are taken side by side,
and a pass over the chunks' ends: for T steps about 3 sqrt(T) operations in place of T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._cells import widen

#: Elements a step from which the CPU takes the steps one by one: an operation costs about 2 us, in which a
#: core reads and writes 32 kB. In chunks every element is written three times.
_WORK = 2048


@torch.library.custom_op("fastrnn::linear_scan", mutates_args=())
def scan(a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool) -> Tensor:
    """a, b (T, B, H), h0 (B, H) or None for zeros. Returns h of every step (T, B, H), in a's dtype."""
    dtype = a.dtype
    a, b, h0 = widen(a), widen(b), widen(h0)
    if not a.numel():
        return torch.empty_like(a, dtype=dtype)
    steps = a.size(0)
    if steps < 16 or (a.is_cpu and a[0].numel() >= _WORK):
        found = _one_by_one(a, b, h0, reverse)
    else:
        found = _in_chunks(a, b, h0, reverse)
    return found.to(dtype)


def _one_by_one(a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool) -> Tensor:
    out = torch.empty(b.shape, dtype=b.dtype, device=b.device)
    every = list(zip(a.unbind(0), b.unbind(0), out.unbind(0), strict=True))
    if reverse:
        every.reverse()
    h = h0
    for a_t, b_t, to in every:
        h = to.copy_(b_t) if h is None else torch.addcmul(b_t, a_t, h, out=to)
    return out


def _in_chunks(a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool) -> Tensor:
    if reverse:
        a, b = a.flip(0), b.flip(0)
    steps = a.size(0)
    size = max(4, round(steps**0.5))
    count = -(-steps // size)
    padded = count * size
    if padded != steps:
        filler = (padded - steps, *a.shape[1:])
        a, b = torch.cat([a, a.new_ones(filler)]), torch.cat([b, b.new_zeros(filler)])
    a, b = a.unflatten(0, (count, size)), b.unflatten(0, (count, size))
    # Each chunk from a state of zero, and what becomes of a state that comes into it.
    h, kept = torch.empty_like(b), torch.empty_like(a)
    h[:, 0], kept[:, 0] = b[:, 0], a[:, 0]
    for t in range(1, size):
        torch.addcmul(b[:, t], a[:, t], h[:, t - 1], out=h[:, t])
        torch.mul(a[:, t], kept[:, t - 1], out=kept[:, t])
    # The states at the chunks' ends, one after the other.
    state = torch.zeros_like(b[0, 0]) if h0 is None else h0
    entering = torch.empty_like(b[:, 0])
    for k in range(count):
        entering[k] = state
        state = torch.addcmul(h[k, -1], kept[k, -1], state)
    h.addcmul_(kept, entering.unsqueeze(1))
    h = h.flatten(0, 1)[:steps]
    return h.flip(0) if reverse else h.clone() if padded != steps else h


@scan.register_fake
def _(a, b, h0, reverse):
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output) -> None:
    a, _, h0, ctx.reverse = inputs
    ctx.save_for_backward(a, h0, output)


def _backward(ctx, grad):
    a, h0, h = ctx.saved_tensors
    start = torch.zeros_like(h[:1]) if h0 is None else h0.unsqueeze(0)
    # The gradient of h_t is what comes to it and a_{t+1} times that of h_{t+1}: the same recurrence, the
    # other way. Where the gradient of a gradient is asked for, this is differentiated in turn.
    if ctx.reverse:
        after, before = torch.cat([torch.zeros_like(a[:1]), a[:-1]]), torch.cat([h[1:], start])
    else:
        after, before = torch.cat([a[1:], torch.zeros_like(a[:1])]), torch.cat([start, h[:-1]])
    g = scan(after, grad, None, not ctx.reverse)
    first = -1 if ctx.reverse else 0
    return g * before, g, (None if h0 is None else a[first] * g[first]), None


scan.register_autograd(_backward, setup_context=_setup)


@scan.register_vmap
def _(info, in_dims, a, b, h0, reverse):
    """Another dimension is more rows."""

    def whole(t: Tensor | None, place: int | None, at: int):
        if t is None:
            return None
        if place is None:
            return t.unsqueeze(at).expand(*t.shape[:at], info.batch_size, *t.shape[at:])
        return t.movedim(place, at)

    a, b, h0 = whole(a, in_dims[0], 1), whole(b, in_dims[1], 1), whole(h0, in_dims[2], 0)
    rows = a.shape[1:3]
    flat = [a.flatten(1, 2), b.flatten(1, 2), None if h0 is None else h0.flatten(0, 1)]
    return scan(*flat, reverse).unflatten(1, rows), 1
