"""The fused path of one layer over a padded batch with lengths and resets, differentiable.

As ``autograd``, with every step's cell state among the results.
"""

from __future__ import annotations

import torch

from .. import reference
from ..reference.rows import masked_layer
from . import library
from .autograd import (
    _NEED_C0,
    _NEED_H0,
    _NEED_WEIGHTS,
    _NEED_X,
    _cuda_mode,
    backward_op,
    differentiable,
    exporting,
    saved,
    tracing,
    unedited,
)


class _MaskedLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h0, c0, lengths, reset, cell, bias, save, tier, *weights):
        weights = list(weights)
        mode = save + tier + _cuda_mode(x) if x.is_cuda else save
        y, hn, cn, gates, cells = library.masked_forward(x, h0, c0, weights, lengths, reset, cell, bias, mode)
        ctx.save_for_backward(*unedited(x, h0, c0), lengths, reset, *unedited(y), gates, cells, *weights)
        ctx.cell, ctx.bias, ctx.tier = cell, bias, tier
        ctx.set_materialize_grads(False)
        return y, hn, cn, cells

    @staticmethod
    def backward(ctx, grad_y, grad_hn, grad_cn, grad_cells):
        x, h0, c0, lengths, reset, y, gates, cells, *weights = saved(ctx, ctx.cell, output=5)
        grads = grad_y, grad_hn, grad_cn, grad_cells
        if all(g is None for g in grads):
            return (None,) * (9 + len(weights))
        wanted = ctx.needs_input_grad
        if differentiable(*grads):
            found = reference.gradients(
                grads,
                x,
                h0,
                c0,
                weights,
                wanted=(*wanted[:3], *wanted[9:]),
                function=masked_layer,
                cell=ctx.cell,
                bias=ctx.bias,
                lengths=lengths,
                reset=reset,
            )
            return (*found[:3], None, None, None, None, None, None, *found[3:])
        need_weights = any(wanted[9:])
        mode = (
            _NEED_X * wanted[0] + _NEED_H0 * wanted[1] + _NEED_C0 * wanted[2] + _NEED_WEIGHTS * need_weights
        )
        kernels = ctx.tier + _cuda_mode(x) if x.is_cuda else 0
        if y is None:
            y = library.masked_forward(x, h0, c0, weights, lengths, reset, ctx.cell, ctx.bias, kernels)[0]
        grad_x, grad_h0, grad_c0, grad_weights = backward_op(masked=True)(
            *grads, x, h0, c0, weights, lengths, reset, y, gates, cells, ctx.cell, ctx.bias, mode + kernels
        )
        return (
            grad_x if wanted[0] else None,
            grad_h0 if wanted[1] else None,
            grad_c0 if wanted[2] else None,
            None,
            None,
            None,
            None,
            None,
            None,
            *(grad_weights if need_weights else [None] * len(weights)),
        )


def layer(
    x, h0, c0, weights, *, cell, bias, lengths=None, reset=None, save="gates", keep_cells=False, tier=0
):
    """One recurrent layer over a padded batch, one or two directions.

    Args:
        x: (T, B, I), any strides. h0, c0: (D, B, Hout) and, for an LSTM, (D, B, H).
        weights: for each direction w_ih, w_hh, [b_ih, b_hh], [w_hr].
        lengths: (B,) int64 on the CPU, 0 to T, or None. reset: (T, B) bool on x's device, or None.
        save: "gates" or "recompute", what backward finds. keep_cells: whether the fourth result is wanted.
        tier: one of library.TIERS, which CUDA kernels; elsewhere 0.

    Returns:
        y (T, B, D*Hout), hn (D, B, Hout), cn (D, B, H) or None, and an LSTM's c of every step, (D, T*B, H) in
        the compute dtype, if wanted, else None.
    """
    lstm = cell == "lstm"
    if exporting():  # see autograd.layer
        mode = library.SAVE_MODES[save] + (tier + _cuda_mode(x) if x.is_cuda else 0)
        y, hn, cn, cells = library.masked_layer(
            x, h0, c0, weights, lengths, reset, cell, bias, keep_cells and lstm, mode
        )
    elif (
        torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (x, h0, c0, *weights))
        and not tracing()
    ):
        y, hn, cn, cells = _MaskedLayer.apply(
            x, h0, c0, lengths, reset, cell, bias, library.SAVE_MODES[save], tier, *weights
        )
    else:
        # Mode 2 keeps the cells and no gates.
        mode = library.SAVE_MODES["recompute"] if keep_cells and lstm else 0
        if x.is_cuda:
            mode += tier + _cuda_mode(x)
        y, hn, cn, _, cells = library.masked_forward(x, h0, c0, weights, lengths, reset, cell, bias, mode)
    return y, hn, (cn if lstm else None), (cells if lstm and keep_cells else None)
