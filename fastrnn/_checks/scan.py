"""What a caller may pass to SRU and SRU++, and the errors for everything else."""

from __future__ import annotations

import torch
from torch import Tensor

from . import batch_sizes_form, batch_sizes_values, kind


class SizeError(ValueError, RuntimeError):
    """A size that does not fit. The ``sru`` package answers some with one type, some with the other."""


class StructureError(TypeError, ValueError):
    """An argument of the wrong type, where the package raised ValueError."""


def size(name: str, argument: str, value: object, positive: bool = True) -> int:
    """A number of features or layers."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: {argument} should be an int, got {kind(value)}")
    if value < (1 if positive else 0):
        least = "greater than zero" if positive else "zero or more"
        raise ValueError(f"{name}: {argument} should be {least}, got {value}")
    return value


def number(name: str, argument: str, value: object) -> float:
    """A number that initial values depend on."""
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several
        pass
    raise TypeError(f"{name}: {argument} should be a number, got {kind(value)}")


def probability(name: str, argument: str, value: object) -> float:
    """A dropout probability, 0 <= p <= 1."""
    found = number(name, argument, value)
    if isinstance(value, bool) or not 0 <= found <= 1:
        raise ValueError(f"{name}: {argument} should be a probability between 0 and 1, got {value!r}")
    return found


def transform_module(name: str, value: object) -> None:
    """A module or a function, or None for the linear map. A class is callable too, and an oversight."""
    if value is None or isinstance(value, torch.nn.Module):
        return
    if isinstance(value, type) or not callable(value):
        got = f"the class {value.__name__}" if isinstance(value, type) else kind(value)
        raise TypeError(f"{name}: transform_module should be a torch.nn.Module or a function, got {got}")


def dims(name: str, x: Tensor, allowed: tuple[int, ...], form: str) -> None:
    if x.dim() not in allowed:
        raise SizeError(f"{name}: input should be {form}, got {x.dim()} dimensions, {list(x.shape)}")


def features(name: str, x: Tensor, expected: int, argument: str = "input_size") -> None:
    got = x.size(-1) if x.dim() else "a scalar"
    if got != expected:
        raise SizeError(f"{name}: input.size(-1) should be {argument} = {expected}, got {got}")


def like_input(name: str, x: Tensor, others: list[tuple[str, Tensor | None]], autocast: bool) -> None:
    """Tensors on the input's device and, unless autocast sees to it, of its dtype."""
    for argument, t in others:
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: {argument} should be a Tensor, got {kind(t)}")
        if t.device != x.device:
            raise RuntimeError(
                f"{name}: {argument} should be on the input's device {x.device}, got {t.device}"
            )
        if t.dtype != x.dtype and not autocast:
            hint = f"; convert the input, input.to({t.dtype})" if argument == "weights" else ""
            raise SizeError(
                f"{name}: {argument} should have the input's dtype {x.dtype}, got {t.dtype}{hint}"
            )


def shape(name: str, argument: str, t: object, *expected: tuple[int, ...]) -> None:
    """One of the expected shapes."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: {argument} should be a Tensor, got {kind(t)}")
    if tuple(t.shape) not in expected:
        choices = " or ".join(str(list(e)) for e in expected)
        raise SizeError(f"{name}: {argument} should have size {choices}, got {list(t.shape)}")


def mask(name: str, argument: str, t: Tensor, device: torch.device, *expected: tuple[int, ...]) -> Tensor:
    """A mask of any dtype, nonzero for pads, as bool."""
    shape(name, argument, t, *expected)
    if t.device != device:
        raise RuntimeError(f"{name}: {argument} should be on the input's device {device}, got {t.device}")
    return t if t.dtype == torch.bool else t != 0


def transformed(name: str, which: str, t: object, steps: torch.Size, features: int) -> None:
    """U or V of a transform module: (L, B, features), or any shape with these rows and features."""
    expected = [*steps, features]
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: transform_module should return {which} as a Tensor, got {kind(t)}")
    if t.dim() == 0 or t.size(-1) != features or t.numel() != steps.numel() * features:
        raise SizeError(
            f"{name}: transform_module should return {which} of size {expected}, got {list(t.shape)}"
        )


def attention_mask(name: str, t: object, expected: tuple[int, int]) -> None:
    """A mask that is added to the scores."""
    shape(name, "attn_mask", t, expected)
    if t.dtype == torch.bool:
        raise StructureError(
            f"{name}: attn_mask should hold numbers that are added to the scores, 0 or -inf, got torch.bool; "
            "for True where a query must not look: torch.zeros(mask.shape).masked_fill(mask, -torch.inf)"
        )


def scan_arguments(
    u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, bidirectional
) -> Tensor | None:
    """The arguments of the recurrence, for paths without checks of their own. Returns mask_pad as bool."""
    name = "sru_scan"
    dims = 4 if batch_sizes is None else 3
    form = "(L, B, K, O)" if batch_sizes is None else "(N, K, O)"
    if not isinstance(u, Tensor):
        raise TypeError(f"{name}: u should be a Tensor, got {kind(u)}")
    if u.dim() != dims or u.size(-2) not in (3, 4):
        raise SizeError(f"{name}: u should be {form} with K = 3 or 4, got {list(u.shape)}")
    *steps, k, features = u.shape
    if bidirectional and features % 2:
        raise SizeError(f"{name}: u.size(-1) should be even with two directions, got {features}")
    if batch_sizes is None:
        rows = steps[1]
    else:
        batch_sizes_form(batch_sizes)
        batch_sizes_values(batch_sizes, steps[0])
        rows = int(batch_sizes[0])
        if mask_pad is not None:
            raise ValueError(f"{name}: mask_pad should be None for packed rows, which have no pads")
    if x is not None and k == 4:
        raise ValueError(f"{name}: x should be None for K = 4, where u holds the skip term")
    shapes = {
        "x": (*steps, features),
        "weight_c": (2, features),
        "bias": (2, features),
        "c0": (rows, features),
    }
    shapes |= {"v": (*steps, 2, features), "drop_mask": (rows, features)}
    values = {"x": x, "weight_c": weight_c, "bias": bias, "c0": c0, "v": v, "drop_mask": drop_mask}
    for argument, expected in shapes.items():
        if values[argument] is not None or argument in ("weight_c", "bias", "c0"):
            shape(name, argument, values[argument], expected)
    for argument, t in values.items():
        if t is not None and (t.device != u.device or t.dtype != u.dtype):
            raise SizeError(
                f"{name}: {argument} should be {u.dtype} on {u.device} as u is, got {t.dtype} on {t.device}"
            )
    return None if mask_pad is None else mask(name, "mask_pad", mask_pad, u.device, (steps[0], rows))
