"""Matrix products of layers whose recurrence is elementwise: there they are most of the time.

torch's float32 products on a CPU are MKL's, which on an AMD CPU runs AVX2 code; oneDNN, which is part of
torch, uses what the CPU has. At 3200 x 512 x 1536 on two cores of Zen 4: 26 to 33 ms for MKL, 23 to 25 for
oneDNN; the gradients of x and of the weight likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._ops import torch_state
from .._ops.torch_state import differentiable, tracing, transformed
from .._plan.costs import onednn, uses_onednn


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return onednn(x, weight, None, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        product = F.linear if differentiable(grad) else _product
        rows, grad_rows = (
            t.reshape(-1, t.size(-1)) for t in (x, grad)
        )  # flatten takes no batch of gradients
        return (
            product(grad, weight.t()) if ctx.needs_input_grad[0] else None,
            # Transposed, because oneDNN is faster this way round: 25 ms in place of 29 at the shape above.
            product(rows.t(), grad_rows.t()).t() if ctx.needs_input_grad[1] else None,
        )


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., I) times weight (O, I) transposed: torch.nn.functional.linear, by the faster library."""
    if (
        not x.is_cpu
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or not uses_onednn(x.numel() * weight.size(0))
        or torch_state.compiling()
        or torch_state.autocasting(x)
        or x.dim() < 2
        or transformed()
        or tracing()  # a program cannot hold the Function, and may run where there is no oneDNN
    ):
        return F.linear(x, weight)
    if torch_state.gradients() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight)
    return _product(x, weight)
