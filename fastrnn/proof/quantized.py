"""Layers with weights of low precision against the same layers in float32: rows of ``python -m fastrnn
verify``.

An error is the largest difference of any output over the largest magnitude of the float32 output. What is
allowed is what rounding costs layers of the sizes that ``numbers`` checks with torch's initial weights, with
a margin of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .._cells import RNN
from .._ops import library
from . import numbers

#: The largest error that is allowed, relative to the largest output.
TOLERANCES = {"bfloat16": 8e-3, "int8": 4e-2}
_LAYERS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}


@dataclass
class Row:
    """The worst error of a cell with such weights on an instruction set, over sizes and directions."""

    cell: str
    weights: str
    target: str
    output: float = 0.0
    where: str = ""
    error: str = ""

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.weights]

    @property
    def ok(self) -> bool:
        return not self.error and self.output <= self.tolerance


def verify(cells: Sequence[str] = (), isas: Sequence[str] = ()) -> list[Row]:
    """The rows of these cells on these instruction sets; of all by default."""
    rows, before = [], library.cpu_isa()
    try:
        for isa in isas or library.available_cpu_isas():
            library.set_cpu_isa(isa)
            for cell in cells or RNN:
                rows += [_row(cell, weights, isa) for weights in TOLERANCES]
    finally:
        library.set_cpu_isa(before)
    return rows


@torch.no_grad()
def _row(cell: str, weights: str, isa: str) -> Row:
    from .. import modules

    row, (name, options) = Row(cell, weights, isa), _LAYERS[cell]
    for T, B, I, H, num_layers in numbers.SIZES:  # noqa: E741
        for bidirectional in (False, True):
            generator = torch.Generator().manual_seed(T * 1000 + H)
            layer = getattr(modules, name)(
                I, H, num_layers=num_layers, bidirectional=bidirectional, **options
            ).eval()
            for parameter in layer.parameters():
                parameter.uniform_(-(H**-0.5), H**-0.5, generator=generator)
            x = torch.randn(T, B, I, generator=generator)
            try:
                found = modules.quantize(layer, weights)(x)[0]
            except Exception as error:  # a failure is a result here
                row.error = numbers._describe(error)
                continue
            error = numbers.distance(found, layer(x)[0])
            if error > row.output:
                row.output = error
                row.where = f"T,B,I,H = {T},{B},{I},{H}, {2 if bidirectional else 1} direction(s)"
    return row
