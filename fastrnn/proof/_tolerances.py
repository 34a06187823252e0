"""What ``verification.py`` checks, one at a time, and how far results may be apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from .._cells import SCAN
from ._variants import options

#: Cells without a projection, single steps or gates to compute again.
SCANS = (*SCAN, "srupp", "linear_scan", "indrnn", "mingru", "minlstm", "slstm")


class Tolerance(NamedTuple):
    """Largest error over largest magnitude, for outputs and for gradients."""

    output: float
    gradient: float


#: Half types round every output, and the state fed back to the next step, once (2^-9 and 2^-12); the rest is
#: arithmetic in float32.
TOLERANCES = {
    "float64": Tolerance(1e-12, 1e-11),
    "float32": Tolerance(2e-6, 1e-5),
    "bfloat16": Tolerance(8e-3, 2e-2),
    "float16": Tolerance(1e-3, 3e-3),
}
#: float32 layers whose products round their factors to TensorFloat-32, a float16's 10 bits of mantissa, on a
#: GPU; the name stands for a dtype in checks. Twice float16's tolerance: both factors of every product are
#: rounded.
TF32 = "tf32"
TF32_TOLERANCE = Tolerance(2e-3, 6e-3)
#: torch.nn in the same dtype is itself away from float64; in half types it rounds after every operation.
TORCH_SLACK = {"float64": 2.0, "float32": 2.0, "bfloat16": 4.0, "float16": 4.0}
#: Incoming gradients are of size one: a gradient far below is a difference of larger terms, and keeps their
#: rounding. Below this magnitude errors are compared absolutely.
FLOOR = 0.1


@dataclass(frozen=True)
class Check:
    """One path of one cell in one dtype (or TF32). directions is 1 for single steps; variant is one of
    ``_variants.VARIANTS``, or "" for the plain cell."""

    cell: str
    path: str
    directions: int
    dtype: str
    variant: str = ""

    @property
    def name(self) -> str:
        way = ", bidirectional" if self.directions == 2 else ""
        variant = f"+{self.variant}" if self.variant else ""
        return f"{self.cell}{variant} {self.path}{way}"

    def projection(self, H: int) -> int:
        """Size of an LSTM's projection, 0 without one."""
        return max(1, H // 3) if self.path == "proj" else 0

    def options(self, H: int) -> dict:
        """The variant's options for a layer of so many hidden units; {} of the plain cell."""
        return options(self.cell, self.variant, H, single=self.path == "cells")

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == TF32 else getattr(torch, self.dtype)

    @property
    def tolerance(self) -> Tolerance:
        return TF32_TOLERANCE if self.dtype == TF32 else TOLERANCES[self.dtype]

    @property
    def torch_slack(self) -> float:
        return TORCH_SLACK["float32" if self.dtype == TF32 else self.dtype]
