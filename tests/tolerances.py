"""How far results may be apart: one table for every test, keyed by dtype.

An error is measured against the largest magnitude of the tensor it is in: recurrent states are bounded by
one, while gradients of weights grow with the number of rows and steps they sum over.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Largest error over largest magnitude, for outputs and for gradients."""

    output: float
    gradient: float


#: Against the float64 reference on the same (rounded) inputs and weights. Half types round every output and
#: the state fed back to the next step once, 2^-9 and 2^-12; the rest is arithmetic in float32.
TOLERANCES = {
    torch.float64: Tolerance(1e-12, 1e-11),
    torch.float32: Tolerance(2e-6, 1e-5),
    torch.bfloat16: Tolerance(8e-3, 2e-2),
    torch.float16: Tolerance(1e-3, 3e-3),
    torch.complex64: Tolerance(4e-6, 2e-5),
    torch.complex128: Tolerance(1e-12, 1e-11),
}

#: Times the table's, against torch.nn in the same dtype: it has errors of its own, and its half types round
#: after every operation.
TORCH_SLACK = {
    torch.float64: 2.0,
    torch.float32: 2.0,
    torch.bfloat16: 4.0,
    torch.float16: 4.0,
    torch.complex64: 2.0,
    torch.complex128: 2.0,
}

#: A tensor without anything larger than this is compared absolutely.
FLOOR = 1e-3


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude of what was expected. NaN differs from everything."""
    if expected.numel() == 0:
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    actual, expected = actual.detach().to(wide), expected.detach().to(wide)
    return ((actual - expected).abs().max() / max(expected.abs().max().item(), FLOOR)).item()


def assert_close(
    actual: Tensor,
    expected: Tensor,
    dtype: torch.dtype,
    *,
    gradient: bool = False,
    slack: float = 1.0,
    what: str = "",
) -> None:
    """Same shape, and values within the table's tolerance of `dtype` times `slack`.

    dtype is that of the computation under test, which an expected value in float64 does not tell.
    """
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, not {list(expected.shape)}"
    limit = TOLERANCES[dtype][gradient] * slack
    got = error(actual, expected)
    assert got <= limit, f"{what}: error {got:.2e} over the tolerance {limit:.2e} of {dtype}"
