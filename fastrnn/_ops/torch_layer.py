"""torch's own layer as one operator with a derivative, for compiled graphs on a GPU.

torch's compiler leaves nn.LSTM out of its graphs or takes it apart, step by step; a graph of fastrnn's stays
whole. So where torch's layer is the one to run, the graph has this operator, which calls it. cuDNN's
workspace, whose size no graph can know, is not carried over to the backward pass: that runs the layer once
more.

In a file of its own beside the kernels' derivatives (autograd.py), whose maker it uses.
"""

from __future__ import annotations

import torch

from .. import reference
from .._cells import RNN
from . import autograd, fakes, torch_state

_ARGUMENTS = "Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, str cell, bool bias"
_fragment = torch.library.Library("fastrnn", "FRAGMENT")
_fragment.define(f"torch_layer({_ARGUMENTS}) -> (Tensor y, Tensor hn, Tensor cn)")
# One by one: some compilers take no list among an operator's results.
_fragment.define(
    f"torch_layer_backward(Tensor? grad_y, Tensor? grad_hn, Tensor? grad_cn, {_ARGUMENTS}, int needs) -> "
    "(Tensor grad_x, Tensor grad_h0, Tensor grad_c0, " + ", ".join(f"Tensor w{i}" for i in range(10)) + ")"
)
forward = torch.ops.fastrnn.torch_layer.default
backward = torch.ops.fastrnn.torch_layer_backward.default


def _call(x, h0, c0, weights, batch_sizes, cell: str, bias: bool, train: bool):
    """(y, hn[, cn]) of torch's layer, or of the reference where torch has none for the case."""
    h, options = ((h0, c0) if RNN[cell].has_cell else h0), (bias, 1, 0.0, train, h0.size(0) == 2)
    function = getattr(torch._VF, cell)
    try:
        if batch_sizes is None:
            return function(x, h, list(weights), *options, False)
        return function(x, batch_sizes, h, list(weights), *options)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        y, hn, cn = reference.layer(x, h0, c0, weights, cell=cell, bias=bias, batch_sizes=batch_sizes)
        return (y, hn) if cn is None else (y, hn, cn)


def _forward(x, h0, c0, weights, batch_sizes, cell, bias):
    with torch.no_grad():
        y, hn, *cn = _call(x, h0, c0, weights, batch_sizes, cell, bias, False)
    return y, hn, cn[0] if cn else x.new_empty((0,))


def _backward(grad_y, grad_hn, grad_cn, x, h0, c0, weights, batch_sizes, cell, bias, needs):
    grads = grad_y, grad_hn, grad_cn if RNN[cell].has_cell else None
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in (x, h0, c0, *weights)]
        # In training, as cuDNN has no gradients otherwise; without dropout the layer is the same.
        outputs = _call(*leaves[:3], leaves[3:], batch_sizes, cell, bias, True)
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=False) if g is not None]
    wanted = [bool(needs & 1 << min(i, 3)) and t is not None for i, t in enumerate(leaves)]
    asked = [t for t, want in zip(leaves, wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad([y for y, _ in pairs], asked, [g for _, g in pairs], allow_unused=True)
        if asked
        else ()
    )
    out = []
    for leaf, want in zip(leaves, wanted, strict=True):
        grad = next(found) if want else None
        out.append(
            grad.contiguous() if grad is not None else torch.zeros_like(leaf) if want else x.new_empty((0,))
        )
    return *out, *(x.new_empty((0,)) for _ in range(13 - len(out)))


_fragment.impl("torch_layer", _forward, "CompositeExplicitAutograd")
_fragment.impl("torch_layer_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("fastrnn::torch_layer")
def _(x, h0, c0, weights, batch_sizes, cell, bias):
    fakes.same_device(x, h0, c0, *weights, host=(batch_sizes,))
    y = x.new_empty((*x.shape[:-1], h0.shape[0] * h0.shape[2]))
    return y, x.new_empty(h0.shape), x.new_empty((0,) if c0 is None else c0.shape)


@torch.library.register_fake("fastrnn::torch_layer_backward")
def _(grad_y, grad_hn, grad_cn, x, h0, c0, weights, batch_sizes, cell, bias, needs):
    fakes.same_device(x, h0, c0, *weights, grad_y, grad_hn, grad_cn, host=(batch_sizes,))
    asked = [(x, 1), (h0, 2), (c0, 4), *((w, 8) for w in weights), *[(None, 8)] * (10 - len(weights))]
    return tuple(fakes.gradient(of, needs & bit, x) for of, bit in asked)


def _pass_forward(batch_sizes, options, x, h0, c0, *weights):
    y, hn, cn = forward(x, h0, c0, list(weights), batch_sizes, *options)
    return (y, hn, cn), ()


def _pass_gradients(grads, constants, options, kept, inputs, wanted):
    x, h0, c0, *weights = inputs
    needs = wanted[0] + 2 * wanted[1] + 4 * wanted[2] + 8 * any(wanted[3:])
    found = backward(*grads, x, h0, c0, weights, *constants, *options, needs)
    return [g if want else None for g, want in zip(found[: len(inputs)], wanted, strict=True)]


def _pass_again(grads, constants, options, inputs, wanted):
    x, h0, c0, *weights = inputs
    cell, bias = options
    rows = {"batch_sizes": constants[0]}
    return reference.gradients(grads, x, h0, c0, weights, wanted=wanted, cell=cell, bias=bias, **rows)


_Layer = autograd._function(
    lambda cell, _: cell,
    _pass_forward,
    _pass_gradients,
    _pass_again,
    constants=1,
    weights=slice(3, None),
    edited=False,
)


def layer(x, h0, c0, weights, *, cell, bias, batch_sizes=None, save="gates"):
    """As ``autograd.layer``, by torch's own layer. save: looked at by nobody, as nothing is."""
    if torch_state.gradients() and any(t is not None and t.requires_grad for t in (x, h0, c0, *weights)):
        y, hn, cn = _Layer.apply(batch_sizes, (cell, bias), x, h0, c0, *weights)
    else:
        y, hn, cn = forward(x, h0, c0, weights, batch_sizes, cell, bias)
    return y, hn, cn if RNN[cell].has_cell else None
