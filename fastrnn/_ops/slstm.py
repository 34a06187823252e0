"""The operator ``fastrnn::slstm``: one direction of an sLSTM over whole sequences, with its derivatives, for
programs of torch.export, whose T is open.

On the CPU it is the kernel of ``fastrnn::slstm_forward``, elsewhere the loop of ``fastrnn.reference``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from . import elementwise, fakes, library, torch_state
from .linear_scan import by_kernel


@torch.library.custom_op("fastrnn::slstm", mutates_args=())
def run(
    gx: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of :func:`fastrnn.reference.slstm`. Returns h of every step and the last h, c, n and m."""
    states = h0, c0, n0, m0
    if by_kernel(gx):
        cut = elementwise._cut(gx, lengths, reset, reverse)
        return tuple(library.slstm_forward(gx, weight_hh, *states, lengths, cut, reverse, False)[:5])
    y, last = reference.slstm(gx, weight_hh, states, lengths=lengths, reset=reset, reverse=reverse)
    return y, *last


@run.register_fake
def _(gx, weight_hh, h0, c0, n0, m0, lengths, reset, reverse):
    fakes.same_device(gx, weight_hh, h0, c0, n0, m0, reset, host=(lengths,))
    steps, rows, features = gx.shape
    states = [gx.new_empty((rows, features // 4)) for _ in range(4)]
    return gx.new_empty((steps, rows, features // 4)), *states


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, *grads):
    *inputs, lengths, reset = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:6]
    constants, options = (lengths, reset), (ctx.reverse,)
    if by_kernel(inputs[0]) and not torch_state.differentiable(*grads):
        _, kept = elementwise._slstm_forward(lengths, reset, options, *inputs)
        found = elementwise._slstm_gradients(grads, constants, options, kept, inputs, wanted)
    else:
        found = elementwise._slstm_again(grads, constants, options, inputs, wanted)
    return *found, None, None, None


run.register_autograd(_backward, setup_context=_setup)
