"""Weights of low precision: how they are stored, and packed for the kernels (csrc/cpu/quantized).

"bfloat16" rounds each weight; products are of float32. "int8" is symmetric, w = scale * q with |q| <= 127 and
one scale a row (an output of the product); the kernels quantize the products' other side at every step
likewise, one scale a row of the batch. Biases, sums, states and what a cell computes stay float32 in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import library

#: How a streamer's weights may be stored, and those of them that are of low precision.
WEIGHTS = ("float32", "bfloat16", "int8")
QUANTIZED = WEIGHTS[1:]
#: Sums of more int8 products do not fit into 32 bits.
MOST_COLUMNS = 1 << 16


class Stored(NamedTuple):
    """A weight as it is stored: int8 with a scale a row, or bfloat16 without."""

    values: Tensor
    scale: Tensor | None

    def float(self) -> Tensor:
        """The weight that the kernels compute with."""
        values = self.values.float()
        return values if self.scale is None else values * self.scale[:, None]


def store(layer: str, name: str, weight: Tensor, weights: str) -> Stored:
    """Quantize a weight. ValueError, which names it, where it has no such form."""
    check_finite(layer, name, weight)
    if weights == "bfloat16":
        rounded = weight.to(torch.bfloat16)
        if not rounded.isfinite().all():
            largest = float(weight.abs().max())
            raise ValueError(
                f"{layer}: {name} cannot be stored as bfloat16: expected magnitudes below 3.39e38, got "
                f"{largest:.3g}"
            )
        return Stored(rounded, None)
    if weight.size(1) > MOST_COLUMNS:
        raise ValueError(
            f"{layer}: {name} cannot be stored as int8: expected at most {MOST_COLUMNS} columns, got "
            f"{weight.size(1)}"
        )
    exact = weight.double()  # float32 would divide small rows by zero
    largest = exact.abs().amax(1) if weight.size(1) else exact.new_zeros(weight.size(0))
    scale = (largest / 127).float()
    if not (scale * 127).isfinite().all():
        raise ValueError(
            f"{layer}: {name} cannot be stored as int8: its scale overflows float32, with a largest "
            f"magnitude of {float(largest.max()):.9g}"
        )
    used = torch.where(scale == 0, 1.0, scale.double())
    values = (exact / used[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Stored(values, scale)


def check_finite(layer: str, name: str, weight: Tensor) -> None:
    if not weight.isfinite().all():
        what = "NaN" if weight.isnan().any() else "infinity"
        raise ValueError(f"{layer}: {name} cannot be quantized: expected finite weights, got {what}")


def pack(
    layer: str, cell: str, names: Sequence[str], weights: Sequence[Tensor], bias: bool, kind: str
) -> tuple[Tensor, float]:
    """One direction of a layer, its names and weights in torch's order, as the kernels read them.

    Also by how much rounding changed the weights: the root mean square of the differences over that of the
        weights.
    """
    biases = weights[2:4] if bias else (None, None)
    matrices = [*weights[:2], *weights[4 if bias else 2 :]]
    of_matrices = [*names[:2], *names[4 if bias else 2 :]]
    stored = [store(layer, name, w, kind) for name, w in zip(of_matrices, matrices, strict=True)]
    if bias:
        for name, vector in zip(names[2:4], biases, strict=True):
            check_finite(layer, name, vector)
    error = _error(stored, matrices)
    if len(stored) == 2:
        stored.append(Stored(None, None))
    values, scales = zip(*stored, strict=True)
    return library.pack_quantized(*values, *scales, *biases, cell), error


def _error(stored: Sequence[Stored], weights: Sequence[Tensor]) -> float:
    """By how much rounding changed them: the root mean square of the differences over that of the weights."""
    pairs = zip(stored, weights, strict=True)
    lost = sum(float((s.float().double() - w.detach()).square().sum()) for s, w in pairs)
    whole = sum(float(w.detach().double().square().sum()) for w in weights)
    return (lost / whole) ** 0.5 if whole else 0.0


def weight_errors(layer, kind: str) -> list[float]:
    """What storing the weights of a layer (an nn.RNNBase) so would change of each of its layers: see
    ``pack``."""
    missing = refusal(layer)
    if missing:
        raise ValueError(f"weights: expected 'float32', or for {kind!r} {missing}")
    name = type(layer).__name__
    found = []
    for names in layer._all_weights:
        matrices = [getattr(layer, n).detach() for n in names if getattr(layer, n).dim() == 2]
        stored = [store(name, n, w, kind) for n, w in zip(names, matrices, strict=False)]
        found.append(_error(stored, matrices))
    directions = 2 if layer.bidirectional else 1
    return [max(found[k : k + directions]) for k in range(0, len(found), directions)]


def refusal(layer) -> str:
    """What a layer of fastrnn's or torch.nn's has that no quantized kernel knows; "" where there is
    nothing."""
    weight = layer._flat_weights[0]
    if vars(layer).get("variant") is not None:
        return "a layer without a variant's options"
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32 or not weight.is_cpu:
        dtype = getattr(weight, "dtype", None)
        return f"float32 weights on the CPU, got {dtype} on {getattr(weight, 'device', None)}"
    if getattr(layer, "backend", "auto") not in ("auto", "fused"):
        return f"backend 'auto' or 'fused', got {layer.backend!r}"
    if not library.cpu_loaded:
        return f"fastrnn's kernels, which are not loaded: {library.cpu_why}"
    return ""
