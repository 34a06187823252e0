"""What the architectures accept: sizes, tensors, lengths, tokens. Each error names model and argument.

Values are looked at in eager mode alone: a program that is being captured has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from .. import _checks
from .._ops.torch_state import autocasting


def size(name: str, argument: str, value: object, least: int = 1) -> int:
    """A size given to a constructor."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: {argument} should be an integer >= {least}, got {value!r}")
    return value


def sizes(name: str, argument: str, value: object) -> tuple[int, ...]:
    """Sizes given to a constructor, one or more."""
    if not isinstance(value, (tuple, list)) or not value:
        raise ValueError(f"{name}: {argument} should be a sequence of integers >= 1, got {value!r}")
    return tuple(size(name, f"{argument}[{i}]", v) for i, v in enumerate(value))


def number(name: str, argument: str, value: object, low: float, high: float = math.inf) -> float:
    """A finite number from ``low`` to ``high``, both included."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and low <= value <= high and abs(value) < math.inf):
        bounds = f">= {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name}: {argument} should be a number {bounds}, got {value!r}")
    return value


def shaped(name: str, argument: str, value: object, *shape: int | str) -> Tensor:
    """A tensor of so many dimensions, none of them empty; numbers must be met, names are for the message."""
    x = _checks.tensor(name, argument, value)
    fits = x.dim() == len(shape) and all(
        n > 0 if isinstance(want, str) else n == want for n, want in zip(x.shape, shape, strict=True)
    )
    if not fits:
        expected = f"({', '.join(map(str, shape))})" + (", none of them 0" if x.numel() == 0 else "")
        raise ValueError(f"{name}: {argument} should be of size {expected}, got {list(x.shape)}")
    return x


def features(name: str, argument: str, value: object, weight: Tensor, *shape: int | str) -> Tensor:
    """As shaped(), for what meets a weight: of its dtype and device. Autocast takes other dtypes too."""
    x = shaped(name, argument, value, *shape)
    if x.device != weight.device or (x.dtype != weight.dtype and not autocasting(x)):
        raise ValueError(
            f"{name}: {argument} should be {weight.dtype} on {weight.device}, as the model is, got {x.dtype} "
            f"on {x.device}"
        )
    return x


def lstm_state(name: str, hx: object, *shape: int) -> tuple[Tensor, Tensor]:
    """The state (h, c) of a layer with an LSTM's states, both of that size."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        raise TypeError(f"{name}: hx should be a tuple (h_0, c_0), got {_checks.kind(hx)}")
    h, c = hx
    return shaped(name, "hx[0]", h, *shape), shaped(name, "hx[1]", c, *shape)


def row_lengths(name: str, lengths: Tensor | Sequence[int], rows: int, steps: int, least: int = 1) -> Tensor:
    """Lengths of ``rows`` rows as an int64 tensor (B,), each from ``least`` to ``steps``."""
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.tensor(lengths)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # torch's answers differ by version
            raise TypeError(
                f"{name}: lengths should be a Tensor or a list of integers, got {lengths!r}"
            ) from None
    if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
        raise TypeError(f"{name}: lengths should be integers, got {lengths.dtype}")
    if lengths.dim() != 1 or lengths.size(0) != rows:
        raise ValueError(f"{name}: lengths should be of size ({rows},), got {list(lengths.shape)}")
    if not torch.compiler.is_compiling():
        low, high = int(lengths.min()), int(lengths.max())
        if low < least or high > steps:
            raise ValueError(
                f"{name}: lengths should be from {least} to {steps}, the steps, got "
                f"{low if low < least else high}"
            )
    return lengths.to(torch.int64)


def steps_within(lengths: Tensor, steps: int, device: torch.device) -> Tensor:
    """(T, B) bool, whether a step is within its row's length."""
    return torch.arange(steps, device=device).unsqueeze(1) < lengths.to(device)


def token(name: str, argument: str, value: object, vocabulary: int) -> int:
    """One token given as a number: the begin or the end of a sequence."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocabulary:
        raise ValueError(f"{name}: {argument} should be an integer from 0 to {vocabulary - 1}, got {value!r}")
    return value


def tokens(name: str, argument: str, value: object, vocabulary: int, dims: tuple[str, ...]) -> Tensor:
    """Integers from 0 to ``vocabulary`` - 1. Values are read on the CPU alone: a GPU would have to wait."""
    x = shaped(name, argument, value, *dims)
    if x.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: {argument} should be int64 or int32, got {x.dtype}")
    if x.is_cpu and not torch.compiler.is_compiling():
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"{name}: {argument} should be from 0 to {vocabulary - 1}, got {low if low < 0 else high}"
            )
    return x
