"""A step of some of a batch's streams: which they are, and the way that has no call of C.

Streams have rows of the state, which stays where it is; only the rows of those that run are read and written.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks
from .._checks import ValueOrRuntimeError
from .._ops import torch_state

_WHAT = "active should be a bool Tensor (B,), a mask of the rows, or an int64 Tensor (n,) of distinct rows"


def streams_of(name: str, active: Tensor, input: Tensor) -> int:
    """How many streams there are where no state says it."""
    _form(name, active, input)
    if active.dtype == torch.bool:
        return active.size(0)
    if active.size(0) == input.size(0):
        raise ValueOrRuntimeError(
            f"{name}: active as numbers of rows needs a state, which says how many rows there are in all"
        )
    return input.size(0)


def step(name: str, run: Callable, input: Tensor, h: Tensor, c: Tensor | None, active: Tensor, out) -> Tensor:
    """run(x, h, c) -> y, h, c of the active rows, the new state into those of h and c (L, B, .).

    input and the result: (n, .) of the active rows in their order, or (B, .) of all of them, of which the
    others are zeros in the result, and what they were in ``out``.
    """
    _form(name, active, input)
    streams, rows = h.size(1), input.size(0)
    mask = active.dtype == torch.bool
    if mask and active.size(0) != streams:
        raise ValueOrRuntimeError(
            f"{name}: {_WHAT}, B = {streams} rows of the state, got a mask of {active.size(0)}"
        )
    states = (h,) if c is None else (h, c)
    if torch_state.compiling() and mask and rows == streams:
        # How many rows run is known when the program runs, and shapes are known before: all run.
        y, *new = run(input, h, c)
        with torch.no_grad():
            for old, found in zip(states, new, strict=False):
                old.copy_(torch.where(active.view(1, -1, 1), found, old))
            kept = torch.zeros_like(y) if out is None else out
            y = torch.where(active.view(-1, 1), y, kept)
            return y if out is None else out.copy_(y)

    index = _index(name, active, streams, rows)
    whole = rows != index.size(0)
    if out is not None:
        _output(name, out, input, h.size(2))
    with torch.no_grad():
        x = input.index_select(0, index) if whole else input
        y, *new = run(x, *(s.index_select(1, index) for s in states), *((None,) if c is None else ()))
        for old, found in zip(states, new, strict=False):
            old.index_copy_(1, index, found)
        if whole:
            return (y.new_zeros((rows, y.size(1))) if out is None else out).index_copy_(0, index, y)
        return y if out is None else out.copy_(y)


def writable(name: str, h: Tensor, c: Tensor | None, out: Tensor | None, same: Tensor | None) -> None:
    """Refuses, before anything is written, memory that does not have each of its values for itself alone.

    same: the part of h that ``out`` may be, whose values are those of the output.
    """
    for argument, tensor in (("hx", h), ("hx", c), ("out", out)):
        if tensor is not None and torch._debug_has_internal_overlap(tensor) == 1:
            raise ValueOrRuntimeError(
                f"{name}: {argument}: expected memory for each value of what is written, got an expanded "
                f"tensor of shape {tuple(tensor.shape)} with strides {tensor.stride()}; clone() it"
            )
    if c is not None and torch._C._overlaps(h, c):
        raise ValueOrRuntimeError(
            f"{name}: hx: expected h and c in memory of their own, got tensors of overlapping ranges of it"
        )
    if out is None:
        return

    def is_same() -> bool:
        facts = [(t.data_ptr(), t.shape, t.stride()) for t in (out, same)]
        return facts[0] == facts[1]

    if (c is not None and torch._C._overlaps(out, c)) or (
        torch._C._overlaps(out, h) and not (same is not None and is_same())
    ):
        raise ValueOrRuntimeError(f"{name}: out: expected memory of its own, got some of the state's, hx")


def _form(name: str, active: Tensor, input: Tensor) -> None:
    """The form of the arguments; the streams' numbers are known later."""
    _checks.tensor(name, "active", active)
    if _checks.tensor(name, "input", input).dim() != 2:
        raise ValueOrRuntimeError(
            f"{name}: active goes with an input of rows, (B, I) or (n, I), got shape {tuple(input.shape)}"
        )
    if active.dim() != 1 or active.dtype not in (torch.bool, torch.int64, torch.int32):
        raise ValueOrRuntimeError(f"{name}: {_WHAT}, got shape {tuple(active.shape)}, {active.dtype}")
    if active.device != input.device:
        raise ValueOrRuntimeError(
            f"{name}: active should be on the input's device, {input.device}, got {active.device}"
        )


def _index(name: str, active: Tensor, streams: int, rows: int) -> Tensor:
    """The numbers of the active rows, int64, once they are seen to fit the state and the input."""
    if torch_state.compiling():
        if active.dtype != torch.bool:
            return active.long()
        return active.logical_not().sort(stable=True)[1][:rows]  # of a mask the active ones come first
    index = active.nonzero().squeeze(1) if active.dtype == torch.bool else active.long()
    n = index.size(0)
    if active.dtype != torch.bool and n:
        if index.min() < 0 or index.max() >= streams:
            out = index[(index < 0) | (index >= streams)][0].item()
            raise ValueOrRuntimeError(f"{name}: {_WHAT} from 0 to {streams - 1}, got {out}")
        ordered = index.sort()[0]
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if twice.numel():
            raise ValueOrRuntimeError(f"{name}: {_WHAT}, got {twice[0].item()} more than once")
        if rows == streams != n and not torch.equal(index, ordered):
            raise ValueOrRuntimeError(
                f"{name}: an input of all {streams} rows goes with a mask, or with active rows in ascending "
                f"order; in another order they go with an input of those {n} rows alone"
            )
    if rows not in (n, streams):
        raise ValueOrRuntimeError(
            f"{name}: expected an input of the {n} active rows or of all {streams}, got {rows} rows"
        )
    return index


def _output(name: str, out: Tensor, input: Tensor, features: int) -> None:
    _checks.tensor(name, "out", out)
    expected = (input.size(0), features)
    if (out.shape, out.dtype, out.device) != (expected, input.dtype, input.device):
        raise ValueOrRuntimeError(
            f"{name}: out: expected shape {expected}, {input.dtype} on {input.device}, got "
            f"{tuple(out.shape)}, {out.dtype} on {out.device}"
        )
