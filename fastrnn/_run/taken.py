"""One set of a layer's weights and options, as a streamer took them, and a step or a chunk of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from .._cells import RNN
from .._ops import library, streams, torch_state
from .._ops.torch_state import autocasting
from .rnn import Stack, run


class Taken(NamedTuple):
    """One set of a layer's weights and options.

    weights: of each layer packed for the kernels where ``packed``, else copies of the layer's own, flat;
        those themselves where ``live``, to be read anew at every call.
    sources: where the layer keeps what its weights come from, see ``sources_of``.
    quick: ordinary calls of packed weights, see ``streams.Quick``.
    errors: of quantized weights, what rounding changed each layer's by.
    """

    stack: Stack
    batch_first: bool
    dtype: torch.dtype
    weights: list[Tensor]
    packed: bool
    live: bool
    sources: list[tuple[dict, str, Tensor, int | None, int]]
    quick: streams.Quick | None = None
    errors: Sequence[float] = ()


def run_unbatched(taken: Taken, x: Tensor, hx) -> tuple:
    """x (1, I) for a step or (T, 1, I), and hx without B."""
    stack = taken.stack
    if hx is not None:
        h, c = _checks.pair(stack.name, hx) if RNN[stack.cell].has_cell else (hx, None)
        _checks.hidden_dims(_checks.tensor(stack.name, "hx", h), c, False)
        hx = h.unsqueeze(1) if c is None else (h.unsqueeze(1), c.unsqueeze(1))
    y, state = run_rows(taken, x, hx)
    squeezed = tuple(s.squeeze(1) for s in state) if RNN[stack.cell].has_cell else state.squeeze(1)
    return y.squeeze(-2), squeezed


def run_rows(taken: Taken, x: Tensor, hx) -> tuple:
    """x (B, I) for a step or (T, B, I). These are microseconds that every step pays."""
    stack, lstm, h, c = taken.stack, RNN[taken.stack.cell].has_cell, None, None
    if hx is not None:
        h, c = _checks.pair(stack.name, hx) if lstm else (_checks.tensor(stack.name, "hx", hx), None)
    refuse_gradients(stack.name, x, h, c)
    if not taken.packed:
        single = x.dim() == 2
        plain = torch.autocast(x.device.type, enabled=False) if autocasting(x) else nullcontext()
        with torch.no_grad(), plain:
            y, h, c = run(stack, x.unsqueeze(0) if single else x, hx, taken.weights)
        return (y.squeeze(0) if single else y), ((h, c) if lstm else h)

    features, rows = x.shape[-1], x.shape[-2]
    if not x.is_cpu:
        _checks.same_kind(x, [("parameter", taken.weights[0])])
    if x.dtype != taken.dtype:
        _checks.input_dtype(x.dtype, taken.dtype)
    if features != stack.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {stack.input_size}, got {features}"
        )
    if h is None:
        h = x.new_zeros((stack.num_layers, rows, stack.proj_size or stack.hidden_size))
        if lstm:
            c = x.new_zeros((stack.num_layers, rows, stack.hidden_size)) if stack.proj_size else h
    else:
        _checks.hidden_dims(h, c, True)
        _checks.hidden_size(stack, h, c, rows)
    y, h, c = library.stream(x, h, c, taken.weights)
    return y, ((h, c) if lstm else h)


def refuse_gradients(name: str, *tensors: Tensor | None) -> None:
    if torch_state.gradients() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{name}: a streamer has no gradients, got an input or state that requires one; use "
            "layer.step(), or torch.no_grad()"
        )
    if torch_state.transformed():
        raise RuntimeError(
            f"{name}: a streamer cannot run under torch.func's transforms or forward-mode AD; use "
            "layer.step()"
        )


def sources_of(layer: nn.RNNBase) -> list[tuple[dict, str, Tensor, int | None, int]]:
    """Every parameter and buffer that the layer's weights come from, those of parametrizations included, and
    weights that are plain attributes, as weight drop makes them: where it is kept, its version (inference
    tensors have none) and its address, which module.to() changes."""
    found = []
    for module in layer.modules():
        plain = {}
        if module is layer:
            plain = {name: None for name in layer._flat_weights_names if name in vars(layer)}
        for holder, names in (
            (module._parameters, module._parameters),
            (module._buffers, module._buffers),
            (vars(module), plain),
        ):
            for name in names:
                tensor = holder[name]
                if tensor is not None:
                    version = None if tensor.is_inference() else tensor._version
                    found.append((holder, name, tensor, version, tensor.data_ptr()))
    return found
