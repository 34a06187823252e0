"""The operator ``fastrnn::linear_scan``: h_t = a_t * h_{t-1} + b_t over whole sequences, with its
derivatives.

On the CPU it is the kernel of ``fastrnn::elementwise_forward``. Written with torch's operations it runs on
every other device. Two ways through time there: step by step, one fused multiply-add a step, where a step is
work enough for that; else in chunks, whose steps are taken side by side, and a pass over the chunks' ends:
for T steps about 3 sqrt(T) operations in place of T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._cells import widen
from . import fakes, library, torch_state

#: What the kernels compute in.
DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))

#: Elements a step from which the CPU takes the steps one by one: an operation costs about 2 us, in which a
#: core reads and writes 32 kB. In chunks every element is written three times.
_WORK = 2048


@torch.library.custom_op("fastrnn::linear_scan", mutates_args=())
def scan(a: Tensor, b: Tensor, h0: Tensor | None, cut: Tensor | None, reverse: bool) -> Tensor:
    """a, b (T, B, H), h0 (B, H) or None for zeros. Returns h of every step (T, B, H), in a's dtype.

    cut: (T, B) bool or None, where no state passes into a step, not even one that is no number. There a is
    0.
    """
    dtype = a.dtype
    if by_kernel(a):
        return library.elementwise_forward("linear", a, b, None, h0, None, cut, reverse)[0]
    a, b, h0 = widen(a), widen(b), widen(h0)
    if not a.numel():
        return torch.empty_like(a, dtype=dtype)
    in_turn = a.size(0) < 16 or (a.is_cpu and a[0].numel() >= _WORK)
    run = _one_by_one if in_turn else _in_chunks
    if cut is None or not a.is_cpu:
        return run(a, b, h0, cut, reverse).to(dtype)
    # Where a is 0 no number passes; that there is none but numbers is asked once, and not step by step.
    found = run(a, b, h0, None, reverse)
    return (found if torch.isfinite(found).all() else _one_by_one(a, b, h0, cut, reverse)).to(dtype)


def by_kernel(t: Tensor) -> bool:
    """Whether there is a kernel for such tensors."""
    return t.is_cpu and library.cpu_loaded and t.dtype in DTYPES


def _one_by_one(a: Tensor, b: Tensor, h0: Tensor | None, cut: Tensor | None, reverse: bool) -> Tensor:
    out = torch.empty(b.shape, dtype=b.dtype, device=b.device)
    cut = [None] * len(a) if cut is None else cut.unsqueeze(-1).unbind(0)
    every = list(zip(a.unbind(0), b.unbind(0), cut, out.unbind(0), strict=True))
    if reverse:
        every.reverse()
    h = h0
    for a_t, b_t, cut_t, to in every:
        if h is None:
            h = to.copy_(b_t)
        else:
            h = torch.addcmul(b_t, a_t, h if cut_t is None else h.masked_fill(cut_t, 0), out=to)
    return out


def _in_chunks(a: Tensor, b: Tensor, h0: Tensor | None, cut: Tensor | None, reverse: bool) -> Tensor:
    given = a, b, h0, cut
    if reverse:
        a, b, cut = a.flip(0), b.flip(0), (None if cut is None else cut.flip(0))
    steps = a.size(0)
    size = max(4, round(steps**0.5))
    count = -(-steps // size)
    padded = count * size
    if padded != steps:
        filler = (padded - steps, *a.shape[1:])
        a, b = torch.cat([a, a.new_ones(filler)]), torch.cat([b, b.new_zeros(filler)])
        cut = None if cut is None else torch.cat([cut, cut.new_zeros(filler[:2])])
    out = torch.empty((padded, *b.shape[1:]), dtype=b.dtype, device=b.device)
    a, b, h = (t.unflatten(0, (count, size)) for t in (a, b, out))
    cut = None if cut is None else cut.unflatten(0, (count, size)).unsqueeze(-1)
    # Each chunk from a state of zero, and what becomes of a state that comes into it.
    kept = torch.empty_like(a)
    h[:, 0], kept[:, 0] = b[:, 0], a[:, 0]
    for t in range(1, size):
        before = h[:, t - 1] if cut is None else h[:, t - 1].masked_fill(cut[:, t], 0)
        torch.addcmul(b[:, t], a[:, t], before, out=h[:, t])
        torch.mul(a[:, t], kept[:, t - 1], out=kept[:, t])
    # A product beyond all numbers, times a state of 0, is none; step by step there is no such product.
    # (Elsewhere than on the CPU the question would have to wait for its answer.)
    if a.is_cpu and not torch.isfinite(kept[:, -1]).all():
        return _one_by_one(*given, reverse)
    if cut is not None:  # whether a state that comes into a chunk ends before a step of it
        ended = cut.cumsum(1) > 0
        kept.masked_fill_(ended, 0)
    # The states at the chunks' ends, one after the other.
    state = torch.zeros_like(b[0, 0]) if h0 is None else h0
    entering = torch.empty_like(b[:, 0])
    for k in range(count):
        entering[k] = state
        if cut is not None:
            state = state.masked_fill(ended[k, -1], 0)
        state = torch.addcmul(h[k, -1], kept[k, -1], state)
    if cut is None:
        h.addcmul_(kept, entering.unsqueeze(1))
    else:
        h.addcmul_(kept, entering.unsqueeze(1).masked_fill(ended, 0))
    # Never a view, whom autograd would not let anybody edit.
    return out[:steps].flip(0) if reverse else out[:steps].clone() if padded != steps else out


@scan.register_fake
def _(a, b, h0, cut, reverse):
    fakes.same_device(a, b, h0, cut)
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output) -> None:
    a, b, h0, cut, ctx.reverse = inputs
    ctx.save_for_backward(a, b, h0, cut, output)


def _backward(ctx, grad):
    a, b, h0, cut, h = ctx.saved_tensors
    if by_kernel(a) and not torch_state.differentiable(grad):
        needs = 3 if h0 is None else 11
        of_a, of_b, _, of_h0 = library.elementwise_backward(
            "linear", grad, None, a, b, None, h0, None, cut, h, ctx.reverse, needs
        )
        return of_a, of_b, (None if h0 is None else of_h0), None, None
    start = torch.zeros_like(h[:1]) if h0 is None else h0.unsqueeze(0)
    # The gradient of h_t is what comes to it and a_{t+1} times that of h_{t+1}: the same recurrence, the
    # other way. Where the gradient of a gradient is asked for, this is differentiated in turn.
    before = torch.cat([h[1:], start] if ctx.reverse else [start, h[:-1]])
    then = None if cut is None else following(cut, ctx.reverse)
    g = scan(following(a, ctx.reverse), grad, None, then, not ctx.reverse)
    first = -1 if ctx.reverse else 0
    of_a, of_h0 = g * before, (None if h0 is None else a[first] * g[first])
    if cut is not None:
        of_a = of_a.masked_fill(cut.unsqueeze(-1), 0)
        of_h0 = None if h0 is None else of_h0.masked_fill(cut[first].unsqueeze(-1), 0)
    return of_a, g, of_h0, None, None


def following(t: Tensor, reverse: bool) -> Tensor:
    """What t (T, .) is at the step after each, in the scan's direction; 0 after the last."""
    none = torch.zeros_like(t[:1])
    return torch.cat([none, t[:-1]] if reverse else [t[1:], none])


scan.register_autograd(_backward, setup_context=_setup)


@scan.register_vmap
def _(info, in_dims, a, b, h0, cut, reverse):
    """Another dimension is more rows."""

    def whole(t: Tensor | None, place: int | None, at: int):
        if t is None:
            return None
        if place is None:
            return t.unsqueeze(at).expand(*t.shape[:at], info.batch_size, *t.shape[at:])
        return t.movedim(place, at)

    places = 1, 1, 0, 1  # where the rows are
    given = zip((a, b, h0, cut), in_dims[:4], places, strict=True)
    tensors = [whole(t, place, at) for t, place, at in given]
    rows = tensors[0].shape[1:3]
    flat = [None if t is None else t.flatten(at, at + 1) for t, at in zip(tensors, places, strict=True)]
    return scan(*flat, reverse).unflatten(1, rows), 1
