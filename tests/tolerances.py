"""How far results may be apart: one table for every test, keyed by dtype.

An error is measured against the largest magnitude of the tensor it is in: recurrent states are bounded by
one, while gradients of weights grow with the number of rows and steps they sum over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.proof import numbers

#: Those of `python -m fastrnn verify`, against the float64 reference on the same (rounded) inputs, weights;
#: complex numbers, which only the reference computes, are added here.
TOLERANCES = {
    **{getattr(torch, name): tolerance for name, tolerance in numbers.TOLERANCES.items()},
    torch.complex64: numbers.Tolerance(4e-6, 2e-5),
    torch.complex128: numbers.Tolerance(1e-12, 1e-11),
}

#: Times the table's, against torch.nn in the same dtype: it has errors of its own, and its half types round
#: after every operation.
TORCH_SLACK = {
    **{getattr(torch, name): slack for name, slack in numbers.TORCH_SLACK.items()},
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


def worst_of(
    names: Sequence[str],
    got: Sequence[Tensor],
    want: Sequence[Tensor],
    tolerance: tuple[float, float],
    dtype: torch.dtype | None = None,
) -> tuple[float, str]:
    """The largest error in units of its tolerance, and where it is. Shapes have to be right, and dtypes where
    one is given.

    tolerance: of results, and of those whose name begins with "grad".
    """
    found = (0.0, "")
    for name, g, w in zip(names, got, want, strict=True):
        assert g.shape == w.shape, f"{name}: shape {tuple(g.shape)}, not {tuple(w.shape)}"
        assert dtype in (None, g.dtype), f"{name}: {g.dtype}, not {dtype}"
        limit = tolerance[name.startswith("grad")]
        ratio = error(g.cpu(), w) / limit
        if not ratio <= found[0]:  # NaN is the worst of all, and stays
            found = (ratio, f"{name}: error {ratio * limit:.2e}, tolerance {limit:.0e}")
            if ratio != ratio:
                break
    return found
