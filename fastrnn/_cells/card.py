"""What is written of a cell: its facts and one step of it, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: (h,) or (h, c)
State = tuple[Tensor, ...]
HALF = (torch.bfloat16, torch.float16)


class Node(NamedTuple):
    """ONNX's node of a cell: its name, where each of torch's gate blocks stands in it (None: there is one),
    and the attributes that make it this cell; of a list each direction has one."""

    name: str
    order: tuple[int, ...] | None = None
    attributes: dict[str, int | list[str]] = {}  # noqa: RUF012 - nobody writes to it


class Card(NamedTuple):
    """What a cell is made of.

    Attributes:
        name: as the operators call it. mode: as torch.nn calls it, None where torch has no such layer.
        family: "rnn" or "scan".
        gates: blocks of H rows in the weights: pre-activations a unit.
        saved: values a unit and step that training keeps for backward, without the cell state.
        has_cell: whether there is a second state c beside h.
        split: whether the last gate's recurrent part is kept apart from the input's.
        projects: whether h may be projected.
        carries: the state, 0 for h or 1 for c, that goes into the next one past the product and the gates'
            nonlinearities alone; None where h has to pass through them.
        onednn: whether torch's own layer of it may be oneDNN's, on the CPU.
        activation: of a cell that has one alone: "tanh" or "relu".
        step: of the rnn family: (gx, state, w_hh, b_hh, w_hr) to the next state, of the input's part of the
            gates gx = W_ih x + b_ih, (B, G*H); b_hh and w_hr may be None.
        gates_of: of the rnn family, the same for variants between the product and the state: (variant,
            weights, gx, recur, state) to the candidates of the next state; recur(first, last, reset=None) is
            the recurrent part of some gates, b_hh included, of h or of reset * h. See ``stages``.
        onnx: its node, None where ONNX has none.
    """

    name: str
    mode: str | None
    family: str
    gates: int
    saved: int
    has_cell: bool
    split: bool
    projects: bool = False
    carries: int | None = None
    onednn: bool = False
    activation: str | None = None
    step: Callable[..., State] | None = None
    gates_of: Callable[..., State] | None = None
    onnx: Node | None = None

    @property
    def states(self) -> int:
        """How many states go from step to step: h, and c where there is one."""
        return 2 if self.has_cell else 1


def widen(t: Tensor | None) -> Tensor | None:
    """Half types as float32, everything else as it is."""
    return t.float() if t is not None and t.dtype in HALF else t
