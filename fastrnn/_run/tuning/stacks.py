"""Stacked layers of raw operators, in pieces: what ``_run.wavefront`` does with the layers of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..._ops import torch_state
from ..._ops.mode import NEEDS, SAVE_MODES
from .. import wavefront

_ALL = sum(NEEDS.values())


class Layer:
    """One layer, differentiable, by operators of a namespace and with a tier for each pass.

    Args:
        ops: where rnn_forward and rnn_backward are. modes: of forward and backward, tier and TF32.
    """

    def __init__(self, ops, cell: str, modes: Sequence[int]) -> None:
        self.ops, self.cell, self.modes = ops, cell, modes

    def __call__(self, x: Tensor, h: Tensor, c: Tensor | None, weights: Sequence[Tensor]) -> tuple:
        if torch_state.gradients():
            y, h, new_c = _Function.apply(self, x, h, c, *weights)
        else:
            y, h, new_c, *_ = self.forward(x, h, c, weights, self.modes[0])
        return y, h, (None if c is None else new_c)

    def forward(self, x, h, c, weights, mode: int) -> tuple[Tensor, ...]:
        return self.ops.rnn_forward(x, h, c, list(weights), None, None, None, self.cell, True, mode)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layer: Layer, x, h, c, *weights):
        mode = layer.modes[0] + SAVE_MODES["gates"]
        y, h_n, c_n, gates, cells = layer.forward(x, h, c, weights, mode)
        ctx.layer = layer
        ctx.save_for_backward(y, gates, cells, x, h, c, *weights)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx, grad_y, grad_h, grad_c):
        y, gates, cells, x, h, c, *weights = ctx.saved_tensors
        grads = grad_y, grad_h, (None if c is None else grad_c), None
        of_layer = ctx.layer.cell, True, _ALL + ctx.layer.modes[1]
        rows = None, None, None
        found = ctx.layer.ops.rnn_backward(*grads, x, h, c, weights, *rows, y, gates, cells, *of_layer)
        gx, gh, gc, gw = found
        return None, gx, gh, (None if c is None else gc), *gw


def run(
    layer: Callable, pieces: int, layers: int, x: Tensor, h: Tensor, c: Tensor | None, *weights: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, h_n and c_n of so many layers over x, as ``_run.wavefront.run`` makes them."""
    own = len(weights) // layers
    states = [(h[k : k + 1], None if c is None else c[k : k + 1]) for k in range(layers)]
    of_layers = [list(weights[k * own : (k + 1) * own]) for k in range(layers)]
    if pieces == 1:
        return _whole(layer, x, states, of_layers)
    return wavefront.run(layer, x, states, of_layers, pieces)


def _whole(layer: Callable, x: Tensor, states: list, weights: list) -> tuple[Tensor, Tensor, Tensor | None]:
    """On the caller's stream, as ``rnn`` runs them."""
    last = []
    for (h, c), own in zip(states, weights, strict=True):
        x, *of_layer = layer(x, h, c, own)
        last.append(of_layer)
    h, c = zip(*last, strict=True)
    return x, torch.cat(h), (None if c[0] is None else torch.cat(c))
