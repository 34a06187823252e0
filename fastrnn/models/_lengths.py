"""The lengths of a padded batch, for models that step through time themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._masked import read


def running(name: str, x: Tensor, lengths: Tensor | Sequence[int] | None) -> Tensor | None:
    """(T, B) bool on x's device: whether a row of x, (T, B, ...), is still running at a step.

    ``lengths`` is what the fused layers take, with their errors: (B,) integers from 0 to T. None for None.
    """
    if lengths is None:
        return None
    steps = x.size(0)
    lengths = read(name, x.flatten(2), lengths, None, False, False).lengths
    # A compiled program cannot look at values before it runs.
    if not torch.compiler.is_compiling() and lengths.numel():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            raise RuntimeError(f"{name}: lengths: expected 0 to {steps}, got {low if low < 0 else high}")
    return torch.arange(steps, device=x.device)[:, None] < lengths.to(x.device)
