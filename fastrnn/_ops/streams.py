"""Calls of packed layers by one call of C, without the dispatcher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._cells import RNN
from . import library


class Quick:
    """A stack's calls by one call of C where they are ordinary (csrc/python_stream.cpp).

    ``step``, ``chunk``, ``step_`` and ``step_active`` return None for every other call, or are None where the
    stack has no such way.
    """

    __slots__ = ("chunk", "step", "step_", "step_active")

    def __init__(
        self, stack, packed: Sequence[Tensor], dtype: torch.dtype, batch_first: bool, sources
    ) -> None:
        self.step = self.chunk = self.step_ = self.step_active = None
        if library.stream_type is None or any(version is None for *_, version, _ in sources):
            return
        facts = {
            "entry": library.stream_entry(),
            "states": len(packed),
            "directions": 2 if stack.bidirectional else 1,
            "input_size": stack.input_size,
            "hidden_size": stack.hidden_size,
            "output_size": stack.proj_size or stack.hidden_size,
            "has_cell": RNN[stack.cell].has_cell,
            "batch_first": batch_first,
            "dtype": dtype,
            "sample": torch.empty(0, dtype=dtype, device="cpu"),
        }
        try:
            native = library.stream_type(facts, list(packed), [tuple(source) for source in sources])
        except TypeError:  # tensors of a kind of their own, a torch that gives no door
            return
        self.step, self.chunk = native.step, native.chunk
        self.step_, self.step_active = native.step_, native.step_active
