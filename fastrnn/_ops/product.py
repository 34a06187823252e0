"""The product of an input with its weights, for layers whose recurrence costs less than it does.

torch gives a float32 product to MKL, whose code for processors of another maker than its own is AVX2's: on
AVX-512 oneDNN, which torch has too, takes half the time of it. Where there is nothing to gain it costs no
more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import linear

from . import torch_state

#: Multiply-adds from which on a product is worth the way around.
_LARGE = 1 << 22
_onednn = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)


def _large(x: Tensor, weight: Tensor) -> bool:
    return x.numel() * weight.size(0) >= _LARGE


def _plain(t: Tensor | None) -> bool:
    """Nothing but float32 in the CPU's memory, which is all that oneDNN sees of a tensor."""
    return t is None or (t.is_cpu and t.dtype is torch.float32 and type(t) in (Tensor, Parameter))


def _times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _onednn(x, weight, bias, "none", [], "")


def over_rows(a: Tensor, b: Tensor) -> Tensor:
    """a.t() @ b of a (N, G) and b (N, I), the gradient of weights, where nothing differentiates it again."""
    if (
        _onednn is None
        or not _large(b, a.t())
        or not (_plain(a) and _plain(b))
        or not torch.backends.mkldnn.enabled
    ):
        return a.t() @ b
    # This way round takes four fifths of the time of the other.
    return _times(b.t(), a.t(), None).t().contiguous()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _times(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        rows = grad.reshape(-1, weight.size(0))  # a batch of gradients at once knows no flatten()
        again = torch_state.differentiable(grad)
        if ctx.needs_input_grad[0]:
            of_x = (rows @ weight).reshape(x.shape) if again else _times(grad, weight.t().contiguous(), None)
        if ctx.needs_input_grad[1]:
            columns = x.reshape(-1, x.size(-1))
            of_weight = rows.t() @ columns if again else over_rows(rows, columns)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``."""
    if (
        _onednn is None
        or not _large(x, weight)
        or not (_plain(x) and _plain(weight) and _plain(bias))
        or not torch.backends.mkldnn.enabled
        or torch_state.autocasting(x)
        or torch_state.recorded()
        or torch_state.exporting()
        or torch_state.tracing()
        or torch_state.transformed()
    ):
        return linear(x, weight, bias)
    given = x, weight, bias
    if torch_state.gradients() and any(t is not None and t.requires_grad for t in given):
        return _Product.apply(*given)
    return _times(*given)
