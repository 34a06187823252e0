"""A layer in front of a GPU's planner: what is known of layers like it."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import autograd
from .._plan.tuning import trust
from .._plan.tuning.kinds import of_stack


def ready(x: Tensor) -> None:
    """Before a call whose passes the planner alone decides: it knows what is known of the device."""
    if not torch.compiler.is_compiling():
        trust.device(x.device.index or 0)


def doubt(stack, x: Tensor, rows: int, batch_sizes: Tensor | None, training: bool) -> str | None:
    """Why a stack over x is torch's own layer's, None where its kernels have been proven here."""
    if autograd.exporting() or autograd.tracing():
        return trust.UNVERIFIED  # of a program, which outlives what is known now
    dtype, index = x.dtype, x.device.index or 0
    tf32 = dtype == torch.float32 and autograd.rnn_tf32()
    directions = 2 if stack.bidirectional else 1
    if torch.compiler.is_compiling():
        layer = stack.cell, dtype, tf32, stack.hidden_size, stack.proj_size, directions, training
        return trust.doubt_recorded(index, *layer, trust.generation)
    packed = batch_sizes is not None
    steps = batch_sizes.size(0) if packed else x.size(0)
    device = trust.device(index)
    asked = stack, steps, rows, dtype, tf32, packed, training
    kinds = device.known.get(asked)
    if kinds is None:
        if len(device.known) > 4096:  # a program whose shapes never come again
            device.known.clear()
        sizes = stack.input_size, stack.hidden_size, stack.proj_size, directions, stack.num_layers
        name = str(dtype).removeprefix("torch.")
        kinds = of_stack(stack.cell, steps, rows, *sizes, name, tf32, training, packed)
        device.known[asked] = kinds
    return trust.doubt(device, kinds)
