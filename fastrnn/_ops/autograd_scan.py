"""The fused recurrence of one SRU layer, differentiable: an autograd.Function around the raw operators.

As in ``autograd.py`` the Function is skipped where nothing needs a gradient, and gradients that are to be
differentiated again come from the plain-torch recurrence.
"""

import torch
from torch import Tensor

from .. import reference
from . import library
from .autograd import differentiable, exporting, saved, tracing, unedited

_NEED_U, _NEED_X, _NEED_WEIGHTS, _NEED_C0, _NEED_V = 1, 2, 4, 8, 16
DROP_MASK_IS_CONSTANT = "drop_mask: expected a constant, got a tensor that requires a gradient"


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, use_tanh, scale, bidirectional
    ):
        h, c, cells = library.sru_forward(
            u,
            x,
            weight_c,
            bias,
            c0,
            v,
            mask_pad,
            drop_mask,
            batch_sizes,
            use_tanh,
            scale,
            bidirectional,
            True,
        )
        kept = *unedited(u, x), weight_c, bias, *unedited(c0, v)
        ctx.save_for_backward(*kept, mask_pad, drop_mask, batch_sizes, cells)
        ctx.options = use_tanh, scale, bidirectional
        ctx.set_materialize_grads(False)
        return h, c

    @staticmethod
    def backward(ctx, grad_h, grad_c):
        nothing = (None,) * 6
        if grad_h is None and grad_c is None:
            return (None, *nothing[1:], *nothing)
        *inputs, mask_pad, drop_mask, batch_sizes, cells = saved(ctx, "sru")
        use_tanh, scale, bidirectional = ctx.options
        wanted = ctx.needs_input_grad[:6]
        if differentiable(grad_h, grad_c):
            grads = reference.sru_scan_gradients(
                (grad_h, grad_c),
                *inputs,
                wanted=wanted,
                mask_pad=mask_pad,
                drop_mask=drop_mask,
                batch_sizes=batch_sizes,
                use_tanh=use_tanh,
                scale=scale,
                bidirectional=bidirectional,
            )
            return (*grads, *nothing)
        needs = (
            _NEED_U * wanted[0]
            + _NEED_X * wanted[1]
            + _NEED_WEIGHTS * (wanted[2] or wanted[3])
            + _NEED_C0 * wanted[4]
            + _NEED_V * wanted[5]
        )
        grads = library.sru_backward(
            grad_h,
            grad_c,
            *inputs,
            mask_pad,
            drop_mask,
            batch_sizes,
            cells,
            use_tanh,
            scale,
            bidirectional,
            needs,
        )
        return (*(g if w else None for g, w in zip(grads, wanted, strict=True)), *nothing)


def scan(
    u: Tensor,
    x: Tensor | None,
    weight_c: Tensor,
    bias: Tensor,
    c0: Tensor,
    *,
    v: Tensor | None = None,
    mask_pad: Tensor | None = None,
    drop_mask: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    use_tanh: bool = False,
    scale: float = 1.0,
    bidirectional: bool = False,
) -> tuple[Tensor, Tensor]:
    """The elementwise recurrence of one SRU layer, one or two directions, over a whole sequence.

    The equations are those of :func:`fastrnn.reference.sru_scan`, which takes the same arguments. O = D*H
    features with the direction outermost.

    Args:
        u: (L, B, K, O) with contiguous features and any other strides, or with batch_sizes packed rows
            (N, K, O); float32, float64, bfloat16 or float16. K = 3 (candidate, forget gate, reset gate) or 4
            (and the skip term).
        x: (L, B, O) or (N, O), the highway's input, multiplied by scale; None for no skip term and for K = 4.
        weight_c, bias: (2, O), the row of the forget gate and that of the reset gate.
        c0: (B, O).
        v: (L, B, 2, O) or (N, 2, O), added to weight_c at each step.
        mask_pad: (L, B) bool, True where a step is padding: c passes unchanged, h is 0. Not with batch_sizes.
        drop_mask: (B, O), a constant on the highway's difference, the same at every step.
        batch_sizes: (L,) int64 on the CPU, as in a PackedSequence.

    Returns:
        h (L, B, O) or (N, O); c (B, O), the state after the last step of each direction. In u's dtype.
        Gradients go to u, x, weight_c, bias, c0 and v.

    Raises:
        RuntimeError: from the operator, naming the argument, what was expected and what came; for a drop_mask
            that requires a gradient, as there is none.
    """
    if exporting():  # see autograd.layer
        return library.sru_scan(
            u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, use_tanh, scale, bidirectional
        )
    if torch.is_grad_enabled():
        if drop_mask is not None and drop_mask.requires_grad:
            raise RuntimeError(DROP_MASK_IS_CONSTANT)
        if any(t is not None and t.requires_grad for t in (u, x, weight_c, bias, c0, v)) and not tracing():
            return _Scan.apply(
                u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, use_tanh, scale, bidirectional
            )
    h, c, _ = library.sru_forward(
        u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, use_tanh, scale, bidirectional, False
    )
    return h, c
