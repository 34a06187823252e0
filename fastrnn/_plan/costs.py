"""What a layer costs at least: operations, bytes, and the seconds of this machine that they take.

The recurrent layers' operations and bytes are the planner's (csrc/plan/cost.h); those of SRU and SRU++, a
matrix product, perhaps attention, and the scan, are counted here.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from .._ops import library

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Layer(NamedTuple):
    """One layer's sizes: I inputs, H units, D directions, K blocks of u; widths between its linear maps; P
    features and heads of its attention, 0 without."""

    I: int  # noqa: E741
    H: int
    D: int
    K: int
    widths: tuple[int, ...] = ()
    P: int = 0
    heads: int = 0
    custom: str | None = None

    @property
    def plain(self) -> bool:
        """Whether there is one linear map before the scan and nothing else."""
        return not (self.widths or self.P or self.custom)


def is_scan(module: nn.Module) -> bool:
    """Whether this is a module of fastrnn's SRU family: its class says so."""
    return getattr(type(module), "_family", None) == "scan"


def layers_of(module: nn.Module) -> list[Layer]:
    """The layers of an SRU, SRUpp or one of their cells."""
    found = []
    for cell in getattr(module, "rnn_lst", [module]):
        transform, widths, P, heads, custom = cell.transform_module, (), 0, 0, None
        if getattr(type(transform), "_counted_as", None) == "attention":
            P, heads = transform.proj_features, transform.num_heads
        elif getattr(type(transform), "_counted_as", None) == "projection":
            widths = (transform.proj_features,)
        elif isinstance(transform, nn.Sequential) and all(isinstance(m, nn.Linear) for m in transform):
            widths = tuple(m.out_features for m in transform[:-1])
        elif not isinstance(transform, nn.Linear):
            custom = type(transform).__name__
        D = 2 if cell.bidirectional else 1
        found.append(Layer(cell.input_size, cell.hidden_size, D, cell.num_matrices, widths, P, heads, custom))
    return found


def costs(layer: Layer, T: int, B: int, dtype: str, training: bool) -> dict:
    """Operations and bytes of one layer, as the plans of the other recurrences have them."""
    size, O = _BYTES[dtype], layer.D * layer.H  # noqa: E741
    state = max(size, 4)
    widths = (layer.I, *layer.widths, O * layer.K)
    if layer.P:
        widths = (layer.I, layer.P, O * layer.K)
    products = sum(a * b for a, b in pairwise(widths)) if not layer.custom else 0
    products += 2 * layer.P * layer.P
    flops = 2.0 * T * B * products + 4.0 * B * T * T * layer.P
    rows = layer.K + (layer.K == 3)  # u, and the highway's input
    a_step = B * O * (rows * size + (state if training else 0))
    plan = {
        "flops": flops * (3 if training else 1),
        "weight_bytes": (products + 4 * O) * size,
        "step_weight_bytes": 4 * O * size,
        "saved_bytes_per_step": a_step if training else 0,
        "saved_bytes_per_step_recompute": a_step if training else 0,
        "scan_bytes": T * B * O * (rows + 1) * size,
    }
    if layer.P:
        plan["attention"] = f"scaled_dot_product_attention, {layer.heads} x {layer.P // layer.heads} features"
    if layer.custom:
        plan["transform_module"] = f"{layer.custom}, not counted"
    return plan


class Elementwise(NamedTuple):
    """One layer of MinGRU, MinLSTM, IndRNN or SLSTM: I inputs, H units, D directions; G gates a unit, ``own``
    recurrent weights a unit; and values a unit and step that backward needs beside gates and output."""

    cell: str
    I: int  # noqa: E741
    H: int
    D: int
    G: int
    own: int = 0
    kept: int = 0


#: Of each such cell: gates; recurrent weights a unit, None for those of heads; values kept for backward.
ELEMENTWISE = {"mingru": (2, 0, 0), "minlstm": (3, 0, 0), "indrnn": (1, 1, 0), "slstm": (4, None, 7)}


def elementwise_layers(
    cell: str, inputs: int, hidden: int, num_layers: int, directions: int, heads: int = 1
) -> list[Elementwise]:
    """The layers of a stack of one of these cells."""
    gates, own, kept = ELEMENTWISE[cell]
    own = 4 * (hidden // heads) if own is None else own
    features = [inputs] + [directions * hidden] * (num_layers - 1)
    return [Elementwise(cell, i, hidden, directions, gates, own, kept) for i in features]


def elementwise_costs(layer: Elementwise, T: int, B: int, dtype: str, training: bool) -> dict:
    """Operations and bytes of one such layer, as ``costs`` has them: products and recurrent weights alone."""
    size, units = _BYTES[dtype], layer.D * layer.H
    weights = units * (layer.G * layer.I + layer.own)
    # The gates and the output are kept in the layer's dtype, an sLSTM's states in that of the arithmetic.
    a_step = B * units * ((layer.G + 1) * size + layer.kept * max(size, 4)) if training else 0
    return {
        "flops": 2.0 * T * B * weights * (3 if training else 1),
        "weight_bytes": weights * size,
        "step_weight_bytes": units * layer.own * size,
        "saved_bytes_per_step": a_step,
        "saved_bytes_per_step_recompute": a_step,
        "scan_bytes": T * B * units * (layer.G + 1) * size,
    }


ELEMENTWISE_REASON = {
    "slstm": "the input's product for all steps at once, then one pass: heads, rows and units side by side",
    "indrnn": "the input's product for all steps at once, then one pass: rows and units side by side",
}
ELEMENTWISE_REASON["mingru"] = ELEMENTWISE_REASON["minlstm"] = (
    "the input's product for all steps at once, then gates and recurrence in one pass: rows and units "
    "side by side, and the steps too where these are few"
)

STEP_REASON = "one step of few rows: the matrix product and the recurrence in one kernel"
REASON = "elementwise: one pass through u, rows and units side by side; the matrix product is outside of it"


#: Below so many multiplications the Python around oneDNN's product costs more than it gains.
_WORTHWHILE = 1 << 21

#: oneDNN's matrix product; None where torch was built without it.
onednn = None
if torch.backends.mkldnn.is_available():
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def uses_onednn(multiplications: int) -> bool:
    """Whether a float32 product of this size on the CPU goes to oneDNN (``_run.projection``)."""
    return onednn is not None and torch.backends.mkldnn.enabled and multiplications >= _WORTHWHILE


def largest_product(layers: list[Layer], T: int, B: int, device: str, dtype: str) -> str | None:
    """A note about the library of the matrix products, where it is not torch's usual one."""
    largest = max(T * B * layer.I * layer.D * layer.H * layer.K for layer in layers)
    if device == "cpu" and dtype == "float32" and uses_onednn(largest):
        return "matrix products by oneDNN"
    return None


@functools.cache
def _fma_peak() -> float:
    return library.cpu_fma_peak()


@functools.cache
def _read_bandwidth(size: int) -> float:
    return library.cpu_read_bandwidth(size)


def floor(plan: dict, T: int, dtype: str, threads: int, training: bool) -> tuple[float, str]:
    """Seconds at least on this CPU, and what sets them."""
    peak = _fma_peak() * threads / (2 if dtype == "float64" else 1)
    # The bandwidth of a power of two near the size, so that few sizes are ever measured.
    size = 1 << max(12, (plan["step_weight_bytes"] // threads).bit_length())
    read = _read_bandwidth(min(size, 1 << 26)) * threads
    arithmetic = plan["flops"] / peak
    reading = T * plan["step_weight_bytes"] * (2 if training else 1) / read
    return max((arithmetic, "arithmetic"), (reading, "reading the weights"))
