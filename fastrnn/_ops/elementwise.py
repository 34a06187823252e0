"""The recurrences without a product and the sLSTM on the CPU's kernels, differentiable.

``scan`` is the linear recurrence, MinGRU, MinLSTM and IndRNN, ``slstm`` the sLSTM: one direction over a whole
sequence. Where ``fused`` says no (other devices, torch.func, torch.export, a trace) the layers are made of
torch's operations, ``fastrnn::linear_scan`` and ``fastrnn::indrnn`` in their place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .._cells import minimal, widen
from ..reference.linear import after_the_end, coefficients, scanned, shown
from ..reference.scan import cuts
from . import fakes, library, torch_state
from .autograd import _function
from .linear_scan import DTYPES
from .linear_scan import scan as linear_scan
from .product import over_rows

#: The gradients that elementwise_backward is asked for: of x, b, the weight and h0.
_NEEDS = 1, 2, 4, 8
_GATES = {"mingru": minimal.mingru, "minlstm": minimal.minlstm}


def fused(x: Tensor) -> bool:
    """Whether the kernels compute a sequence."""
    return (
        x.is_cpu
        and library.cpu_loaded
        and x.dtype in DTYPES
        and not torch_state.exporting()
        and not torch_state.tracing()
        and not torch_state.transformed()
    )


def _cut(x: Tensor, lengths: Tensor | None, reset: Tensor | None, reverse: bool) -> Tensor | None:
    """Where a direction begins anew."""
    if reset is None:
        return None
    return cuts(reset, None if lengths is None else after_the_end(x, lengths), reverse)


def _forward(lengths, reset, options, x, b, weight, h0):
    cell, reverse = options
    cut = _cut(x, lengths, reset, reverse)
    y, last = library.elementwise_forward(cell, x, b, weight, h0, lengths, cut, reverse)
    return (y, last), (y,)


def _gradients(grads, constants, options, kept, inputs, wanted):
    lengths, reset = constants
    cell, reverse = options
    cut = _cut(inputs[0], lengths, reset, reverse)
    (y,) = kept
    if y is None:
        y = library.elementwise_forward(cell, *inputs, lengths, cut, reverse)[0]
    needs = sum(need for need, w in zip(_NEEDS, wanted, strict=True) if w)
    found = library.elementwise_backward(cell, *grads, *inputs, lengths, cut, y, reverse, needs)
    return [g if w else None for g, w in zip(found, wanted, strict=True)]


def _definition(cell, x, b, weight, h0, lengths, reset, reverse) -> tuple[Tensor, Tensor]:
    """The same in torch's operations."""
    name, _, option = cell.partition("_")
    if weight is not None:
        start = x.new_zeros(x.shape[1:]) if h0 is None else h0
        rows = {"lengths": lengths, "reset": reset, "reverse": reverse}
        return reference.indrnn(x, weight, start, relu=option == "relu", **rows)
    a, b = (x, b) if b is not None else _GATES[name](widen(x), option == "log")
    a, b, cut = coefficients(widen(a), widen(b), lengths, reset, reverse)
    h0 = widen(h0)
    # A batch of gradients at once (is_grads_batched) knows torch's own operations alone.
    h = (linear_scan if torch_state.gradients() else scanned)(a, b, h0, cut, reverse)
    return shown(h, lengths).to(x.dtype), h[0 if reverse else -1].to(x.dtype)


def _differentiated(definition, grads, inputs, wanted) -> list[Tensor | None]:
    """The gradients of a definition's results as functions that can be differentiated again."""
    with torch.enable_grad():
        # Views stand in for the tensors: one in two places is to get two gradients, not their sum twice.
        leaves = [t if t is None else t.view_as(t) for t in inputs]
        used = [(r, g) for r, g in zip(definition(*leaves), grads, strict=True) if g is not None]
        chosen = [t for t, w in zip(leaves, wanted, strict=True) if w]
        results, grads = zip(*used, strict=True)
        found = iter(torch.autograd.grad(results, chosen, grads, create_graph=True, allow_unused=True))
    return [next(found) if w else None for w in wanted]


def _again(grads, constants, options, inputs, wanted):
    cell, reverse = options
    return _differentiated(lambda *t: _definition(cell, *t, *constants, reverse), grads, inputs, wanted)


_Scan = _function(
    lambda cell, *_: cell, _forward, _gradients, _again, constants=2, weights=slice(2, 3), edited=True
)


def _recorded(*tensors: Tensor | None) -> bool:
    return torch_state.gradients() and any(t is not None and t.requires_grad for t in tensors)


def scan(
    cell: str,
    x: Tensor,
    b: Tensor | None = None,
    weight: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """One direction of a recurrence without a product.

    Args:
        cell: "linear", "mingru", "mingru_log", "minlstm", "minlstm_log", "indrnn_tanh" or "indrnn_relu".
        x: (T, B, H) for "linear", whose a it is, and IndRNN; the gates (T, B, 2*H) or (T, B, 3*H).
        b: (T, B, H) of "linear". weight: (H,) of IndRNN. h0: (B, H), zeros by default.
        lengths: (B,) int64 on the CPU. reset: (T, B) bool, where a new sequence begins.

    Returns:
        y (T, B, H), zeros beyond a row's length, and the last state (B, H).
    """
    inputs = x, b, weight, h0
    if _recorded(*inputs):
        return _Scan.apply(lengths, reset, (cell, reverse), *inputs)
    cut = _cut(x, lengths, reset, reverse)
    return library.elementwise_forward(cell, *inputs, lengths, cut, reverse)


def _slstm_forward(lengths, reset, options, *inputs):
    (reverse,) = options
    cut = _cut(inputs[0], lengths, reset, reverse)
    *results, pre, states = library.slstm_forward(*inputs, lengths, cut, reverse, True)
    return tuple(results), (results[0], pre, states)


def _slstm_gradients(grads, constants, options, kept, inputs, wanted):
    lengths, reset = constants
    (reverse,) = options
    y, *saved = kept
    cut = _cut(inputs[0], lengths, reset, reverse)
    found = library.slstm_backward(*grads, *inputs, lengths, cut, *saved, reverse)
    of_weight = None
    if wanted[1]:
        if y is None:
            y = library.slstm_forward(*inputs, lengths, cut, reverse, False)[0]
        before = _before(y, inputs[2], lengths, cut, reverse)
        of_weight = _weight_gradient(found[0], before, inputs[1])
    found = found[0], of_weight, *found[1:]
    return [g if w else None for g, w in zip(found, wanted, strict=True)]


def _before(y: Tensor, h0: Tensor | None, lengths, cut, reverse: bool) -> Tensor:
    """h that each step begins with."""
    start = y.new_zeros(y.shape[1:]) if h0 is None else h0
    if reverse:
        h = torch.cat([y[1:], start.unsqueeze(0)])
        if lengths is not None:
            h = torch.where(after_the_end(y, lengths - 1).unsqueeze(-1), start, h)
    else:
        h = torch.cat([start.unsqueeze(0), y[:-1]])
    return h if cut is None else h.masked_fill(cut.unsqueeze(-1), 0)


def _weight_gradient(of_gx: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    """A product over all steps for each head."""
    of_gx, h = widen(of_gx).flatten(0, 1), widen(h).flatten(0, 1)
    size = weight.size(1)
    heads = h.size(1) // size
    if heads == 1:
        return over_rows(of_gx, h).to(weight.dtype)
    rows, found = of_gx.unflatten(1, (4, heads, size)), weight.new_empty((4, heads, size, size))
    for head, own in enumerate(h.split(size, 1)):
        found[:, head] = over_rows(rows[:, :, head].flatten(1), own).unflatten(0, (4, size))
    return found.view(weight.shape)


def _slstm_again(grads, constants, options, inputs, wanted):
    lengths, reset = constants

    def definition(gx, weight, *states):
        zeros = gx.new_zeros(gx.size(1), gx.size(2) // 4)
        states = tuple(zeros if s is None else s for s in states)
        y, last = reference.slstm(gx, weight, states, lengths=lengths, reset=reset, reverse=options[0])
        return y, *last

    return _differentiated(definition, grads, inputs, wanted)


_Slstm = _function(
    lambda *_: "slstm",
    _slstm_forward,
    _slstm_gradients,
    _slstm_again,
    constants=2,
    weights=slice(1, 2),
    edited=True,
)


def slstm(
    gx: Tensor,
    weight_hh: Tensor,
    states: tuple[Tensor, ...] | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One direction of an sLSTM; arguments and results of :func:`fastrnn.reference.slstm`, states of zeros by
    default."""
    inputs = gx, weight_hh, *(states or (None,) * 4)
    if _recorded(*inputs):
        y, *last = _Slstm.apply(lengths, reset, (reverse,), *inputs)
    else:
        cut = _cut(gx, lengths, reset, reverse)
        y, *last = library.slstm_forward(*inputs, lengths, cut, reverse, False)[:5]
    return y, tuple(last)


def _blocks(cell: str) -> int:
    """Values a unit and step in x."""
    return {"mingru": 2, "minlstm": 3}.get(cell.partition("_")[0], 1)


@fakes.fake("elementwise_forward")
def _(cell, x, b, weight, h0, lengths, cut, reverse):
    fakes.same_device(x, b, weight, h0, cut, host=(lengths,))
    steps, rows, features = x.shape
    hidden = features // _blocks(cell)
    return x.new_empty((steps, rows, hidden)), x.new_empty((rows, hidden))


@fakes.fake("elementwise_backward")
def _(cell, grad_y, grad_last, x, b, weight, h0, lengths, cut, y, reverse, needs):
    fakes.same_device(x, b, weight, h0, cut, y, grad_y, grad_last, host=(lengths,))
    return tuple(fakes.gradient(of, needs & bit, x) for of, bit in ((x, 1), (b, 2), (weight, 4), (h0, 8)))


@fakes.fake("slstm_forward")
def _(gx, weight_hh, h0, c0, n0, m0, lengths, cut, reverse, save):
    fakes.same_device(gx, weight_hh, h0, c0, n0, m0, cut, host=(lengths,))
    steps, rows, features = gx.shape
    hidden, dtype = features // 4, library.compute_dtype(gx)
    kept = [gx.new_empty((steps, rows, n * hidden) if save else (0,), dtype=dtype) for n in (4, 3)]
    states = [gx.new_empty((rows, hidden)) for _ in range(4)]
    return gx.new_empty((steps, rows, hidden)), *states, *kept


@fakes.fake("slstm_backward")
def _(
    grad_y,
    grad_h,
    grad_c,
    grad_n,
    grad_m,
    gx,
    weight_hh,
    h0,
    c0,
    n0,
    m0,
    lengths,
    cut,
    pre,
    saved,
    reverse,
):
    grads = grad_y, grad_h, grad_c, grad_n, grad_m
    fakes.same_device(gx, *grads, weight_hh, h0, c0, n0, m0, cut, pre, saved, host=(lengths,))
    states = [gx.new_empty((gx.shape[1], gx.shape[2] // 4)) for _ in range(4)]
    return gx.new_empty(gx.shape), *states
