"""How exact float32 is beside torch.nn's own float32, both against float64: a column of ``verify``.

A draw is one size, scale of the input and seed. Its error of an output or gradient is the root mean square
of the difference to float64 over that of the values, and its ratio is our error over torch.nn's. Errors
below FLOOR count as FLOOR: there a rounding of the result itself is all that is left, and which of two
numbers rounds the better says nothing.

What is judged is, for each quantity and scale, the geometric mean of the ratios over sizes and seeds. A
single draw says little: at an input of 1e3 a handful of units that have not converged carry the whole error,
of either side, and a unit of ReLU within a rounding of zero carries it alone. So one draw counts as LIMIT at
most, and as 1 / LIMIT at least. A tensor of fewer than FEW numbers is not judged: the error of one number is
luck (only the factor of SRU++'s attention is so small, whose gradient torch computes on both sides). The
largest ratio of a single draw, of small tensors too, is reported beside the verdict, unbounded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._data import Data, make_data, run_functional, run_torch
from ._tolerances import SCANS, Check

ALLOWED = 1.5
#: Kernels without fused multiply-add round every product as well as every sum, which the torch beside them
#: need not do: twice the variance of the error, where rounding of products and sums is all of it.
ALLOWED_WITHOUT_FMA = 1.5 * 2**0.5
#: Relative error that a correctly rounded float32 result has: a rounding is uniform within 2^-24 of a value.
FLOOR = 3e-8
LIMIT = 6.0
FEW = 16
SCALES = (1e-3, 1.0, 1e3)
SEEDS = 4
#: T, B, I, H and layers: short and long sums over inputs, units, rows and steps.
SIZES = ((7, 3, 20, 33, 1), (40, 13, 6, 97, 1), (12, 5, 300, 64, 1), (3, 20, 64, 400, 1), (6, 4, 30, 48, 2))


@dataclass
class Accuracy:
    """Our error over torch.nn's: the worst quantity's mean, and the worst single draw; what they are of."""

    ratio: float = 0.0
    where: str = ""
    worst: float = 0.0
    worst_where: str = ""


def allowed(isa: str) -> float:
    return ALLOWED_WITHOUT_FMA if isa == "baseline" else ALLOWED


def error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the exact values, at least FLOOR; infinite for NaN."""
    if exact.numel() == 0:
        return FLOOR
    actual, exact = actual.detach().double(), exact.detach()
    difference = (actual - exact).square().mean().sqrt()
    found = float(difference / exact.square().mean().sqrt().clamp_min(1e-37))
    return max(FLOOR, found) if found == found else float("inf")


def _quantity(name: str, data: Data) -> str:
    """The same name for the same parameter of every layer and direction."""
    kind, index = name.split()
    first, a_layer = 1 + len(data.hx), data.num_layers * data.check.directions
    at = int(index) - first
    if kind != "gradient" or at < 0 or len(data.params) % a_layer:
        return name
    return f"gradient {first + at % (len(data.params) // a_layer)}"


def measure(
    check: Check, isas: Sequence[str], select: Callable[[str], None], seeds: int = SEEDS
) -> dict[str, Accuracy]:
    """Accuracy of a float32 check on each instruction set. select(isa) switches to it.

    Draws of an odd seed compute the gates again in backward, where the path has them.
    """
    found = {isa: Accuracy() for isa in isas}
    logs: dict[tuple, list[float]] = {}
    recomputes = check.path != "cells" and check.cell not in SCANS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for size, scale, seed in itertools.product(SIZES, SCALES, range(seeds)):
            if check.path == "cells" and size[-1] > 1:
                continue  # a step has no layers
            data = make_data(check, size, "cpu", seed=seed, scale=scale)
            exact = run_functional(data, torch.float64, "reference", "training")
            theirs = {name: error(tensor, exact[name]) for name, tensor in run_torch(data).items()}
            mode = "recompute" if recomputes and seed % 2 else "training"
            for isa in isas:
                select(isa)
                for name, tensor in run_functional(data, torch.float32, "fused", mode).items():
                    ratio = error(tensor, exact[name]) / theirs[name]
                    bounded = min(LIMIT, max(1 / LIMIT, ratio))
                    if tensor.numel() >= FEW:
                        logs.setdefault((isa, scale, _quantity(name, data)), []).append(math.log(bounded))
                    if ratio > found[isa].worst:
                        found[isa].worst = ratio
                        place = (
                            f"T,B,I,H = {','.join(map(str, size[:4]))}, {mode}, input of {scale:g}, {name}"
                        )
                        found[isa].worst_where = place
    finally:
        torch.set_num_threads(threads)
    for (isa, scale, name), values in logs.items():
        mean = math.exp(sum(values) / len(values))
        if mean > found[isa].ratio:
            found[isa].ratio = mean
            found[isa].where = f"input of {scale:g}, {name}"
    return found
