"""What a caller may pass, and the errors for everything else.

The tests and their order are those of torch.nn, and so are the types and texts of the errors; where torch has
none (or stumbles over an attribute), the error names the argument, what was expected and what came. Nothing
here runs for an argument that is as it should be, except the comparisons themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

import torch
from torch import Tensor

from .._cells import NAMES, PLAIN, RNN, Variant
from .._cells.variant import parameters
from .._ops import torch_state
from .._ops.mode import BACKENDS, SAVE  # noqa: F401
from .._ops.mode import NAMED_TIERS as TIERS  # noqa: F401

NONLINEARITIES = tuple(card.activation for card in RNN.values() if card.activation)


class StructureError(TypeError, RuntimeError, AttributeError, IndexError):
    """An argument that is no tensor, or a hidden state of the wrong structure.

    torch.nn answers these with whichever of the four types the first failing access gives: AttributeError for
    a tuple where a tensor belongs, IndexError for a tuple of one, TypeError or RuntimeError for others. Code
    that catches any of them keeps working.
    """


class ValueOrRuntimeError(ValueError, RuntimeError):
    """What torch.nn answers with one type here and with the other there."""


def one_of(name: str, argument: str, value: str, allowed: tuple[str, ...]) -> None:
    """An option given by name."""
    if value not in allowed:
        choices = ", ".join(map(repr, allowed[:-1])) + f" or {allowed[-1]!r}"
        raise ValueError(f"{name}: {argument} should be {choices}, got {value!r}")


def kind(value: object) -> str:
    """What came, in a word or two, for a message."""
    if isinstance(value, Tensor):
        return "a nested Tensor" if value.is_nested else f"a Tensor of size {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(v).__name__ for v in value)})"
    return type(value).__name__


def tensor(name: str, argument: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise StructureError(f"{name}: {argument} should be a Tensor, got {kind(value)}")
    return value


def dense(name: str, input: Tensor) -> Tensor:
    """An input that is nested, sparse or of oneDNN's layout, as kernels can read it."""
    if input.is_nested:
        raise RuntimeError(
            f"{name}: input should be a dense Tensor, got a nested one; torch.nested.to_padded_tensor pads it"
        )
    return input.to_dense()


def probability(name: str, p: object) -> float:
    """A dropout that was changed after construction, or is an argument of a function."""
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"{name}: dropout should be a number, got {kind(p)}")
    if not 0 <= p <= 1:
        raise ValueOrRuntimeError(f"dropout probability has to be between 0 and 1, but got {p}")
    return p


def pair(name: str, hx: object) -> tuple[Tensor, Tensor]:
    """The two states of an LSTM."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        op = NAMES.get(name, "lstm_cell")  # torch's own, of a layer or of a cell
        message = f"{op} expects two hidden states: hx should be a tuple (h_0, c_0), got {kind(hx)}"
        if name in NAMES and isinstance(hx, Tensor) and hx.dim() == 3:
            # torch takes a tensor apart along its first dimension, and complains about what it finds there.
            torchs = "For batched 3-D input, hx and cx should also be 3-D but got (2-D, 2-D) tensors"
            message = f"{torchs}; {message}"
        raise StructureError(message)
    h, c = hx
    return tensor(name, "hx[0]", h), tensor(name, "hx[1]", c)


def hidden_dims(h: Tensor, c: Tensor | None, batched: bool) -> None:
    """States of 3 dimensions for batched input, of 2 for a single sequence. c is None for GRU and RNN."""
    dims = 3 if batched else 2
    if h.dim() == dims and (c is None or c.dim() == dims):
        return
    which = "batched 3-D" if batched else "unbatched 2-D"
    if c is None:
        raise RuntimeError(f"For {which} input, hx should also be {dims}-D but got {h.dim()}-D tensor")
    raise RuntimeError(
        f"For {which} input, hx and cx should also be {dims}-D but got ({h.dim()}-D, {c.dim()}-D) tensors"
    )


def hidden_size(stack, h: Tensor, c: Tensor | None, rows: int) -> None:
    """States (L*D, B, P) and, for the LSTM, (L*D, B, H)."""
    states = stack.num_layers * (2 if stack.bidirectional else 1)
    expected = (states, rows, stack.proj_size or stack.hidden_size)
    if h.shape != expected:
        label = "hidden" if c is None else "hidden[0]"
        raise RuntimeError(f"Expected {label} size {expected}, got {list(h.shape)}")
    if c is not None:
        expected = (states, rows, stack.hidden_size)
        if c.shape != expected:
            raise RuntimeError(f"Expected hidden[1] size {expected}, got {list(c.shape)}")


def input_dtype(got: torch.dtype, weight: torch.dtype) -> NoReturn:
    raise ValueOrRuntimeError(  # an nn.LSTM's packed input is a RuntimeError, all else a ValueError
        f"RNN input dtype ({got}) does not match weight dtype ({weight}). "
        f"Convert input: input.to({weight}), or convert model: model.to({got})"
    )


def same_kind(x: Tensor, others: Sequence[tuple[str, Tensor | None]], subject: str = "input") -> None:
    """Every tensor on the device and of the dtype of the input x (or of another subject)."""
    for label, t in others:
        if t is None:
            continue
        if t.device != x.device:
            raise RuntimeError(
                f"{subject.capitalize()} and {label} tensors are not at the same device, "
                f"found {subject} tensor at {x.device} and {label} tensor at {t.device}"
            )
        if t.dtype != x.dtype:
            raise RuntimeError(
                f"{subject.capitalize()} and {label} tensors are not the same dtype, "
                f"found {subject} tensor with {x.dtype} and {label} tensor with {t.dtype}"
            )


def batch_sizes_form(batch_sizes: object) -> None:
    """The form of batch_sizes; the kernels look at the values, which for them costs nothing."""
    tensor("packed input", "batch_sizes", batch_sizes)
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
        message = (
            "batch_sizes should be a 1-D int64 Tensor on the CPU, got "
            f"{batch_sizes.dim()}-D {batch_sizes.dtype} on {batch_sizes.device}"
        )
        if torch_state.exporting():
            message += (
                "; torch cannot export a model that packs sequences, as it gives them no batch_sizes while "
                "it traces: pass the padded batch and lengths= to the layer"
            )
        raise RuntimeError(message)
    if batch_sizes.numel() == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN: batch_sizes is empty")


def batch_sizes_values(batch_sizes: Tensor, rows: int) -> None:
    """The values of batch_sizes, before a path that has no checks of its own."""
    sizes = batch_sizes.tolist()
    if sizes[-1] <= 0 or any(a < b for a, b in pairwise(sizes)):
        raise RuntimeError(f"batch_sizes should be positive and never increase, got {sizes[:8]}")
    if sum(sizes) != rows:
        raise RuntimeError(f"batch_sizes should add up to input.size(0) = {rows}, got {sum(sizes)}")


def params(
    name: str,
    cell: str,
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    directions: int,
    variant: Variant = PLAIN,
) -> tuple[int, int, int]:
    """Check a flat list of weights. Returns input_size, hidden_size and proj_size (0 for no projection)."""
    if isinstance(num_layers, bool) or not isinstance(num_layers, int):
        raise TypeError(f"{name}: num_layers should be an int, got {kind(num_layers)}")
    if isinstance(weights, Tensor) or not hasattr(weights, "__getitem__"):
        raise TypeError(f"{name}: params should be a list of Tensors, got {kind(weights)}")
    card = RNN[cell]
    gates, states = card.gates, num_layers * directions
    plain = len(parameters(cell, variant, 1, 1, 0, bias))
    allowed = (plain, plain + 1) if card.projects else (plain,)
    if states < 1 or len(weights) not in [n * states for n in allowed]:
        raise ValueError(
            f"{name}: params should hold {' or '.join(map(str, allowed))} tensors for each of {num_layers} "
            f"layers and {directions} directions with bias={bias}, got {len(weights)}"
        )
    for i, w in enumerate(weights):
        tensor(name, f"params[{i}]", w)
    w_ih, w_hh, *_ = weights
    if w_ih.dim() != 2 or w_hh.dim() != 2 or w_ih.size(0) % gates or not w_ih.numel() or not w_hh.numel():
        raise ValueError(
            f"{name}: params[0] and params[1] should be matrices of {gates}*hidden_size rows, got sizes "
            f"{list(w_ih.shape)} and {list(w_hh.shape)}"
        )
    per_direction = len(weights) // states
    rows, input_size = w_ih.shape
    hidden = rows // gates
    projected = per_direction > plain
    out = w_hh.size(1) * variant.heads if projected else hidden
    first, later = (
        list(parameters(cell, variant, inputs, hidden, out if projected else 0, bias).values())
        for inputs in (input_size, out * directions)
    )
    for i, w in enumerate(weights):
        k, role = divmod(i, per_direction)
        expected = (first if k < directions else later)[role]
        if w.shape != expected:
            raise ValueError(f"{name}: expected params[{i}] of size {list(expected)}, got {list(w.shape)}")
    same_kind(w_ih, [(f"params[{i}]", w) for i, w in enumerate(weights)], "params[0]")
    return input_size, hidden, out if projected else 0


def cell_params(name: str, cell: str, weights: Sequence[Tensor], hidden: int) -> None:
    """The weights of a cell, w_ih, w_hh and perhaps the biases, for a path without checks of its own."""
    rows = RNN[cell].gates * hidden
    for label, w, expected in zip(
        ("w_ih", "w_hh", "b_ih", "b_hh"),
        weights,
        ((rows, weights[0].size(-1)), (rows, hidden), (rows,), (rows,)),
        strict=False,
    ):
        if w.shape != expected:
            raise RuntimeError(f"{name}: expected {label} of size {list(expected)}, got {list(w.shape)}")


def cell_weights(name: str, weights: Sequence[object]) -> None:
    """The weights of a cell, where one of them turned out to have no sizes: what is wrong with it."""
    for label, w, dims in zip(("w_ih", "w_hh", "b_ih", "b_hh"), weights, (2, 2, 1, 1), strict=False):
        if w is None and dims == 1:
            continue
        tensor(name, label, w)
        if w.dim() != dims:
            raise StructureError(f"{name}: {label} should have {dims} dimensions, got {kind(w)}")


def cell_dims(name: str, x: Tensor, h: Tensor | None, c: Tensor | None) -> None:
    """A cell's input and states have one dimension or two."""
    states = [("hidden", h)] if c is None else [("hx[0]", h), ("hx[1]", c)]
    for argument, t in [("input", x), *states]:
        if t is not None and t.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected {argument} to be 1D or 2D, got {t.dim()}D instead")


#: torch's versions whose cells tell what sizes of a state do not fit, where it has the wrong dimensions.
_WITHOUT_CELLS_DIMENSIONS = ("2.11.", "2.12.", "2.13.", "2.14.")


def cell_state(h: Tensor, expected: tuple[int, int], index: int) -> NoReturn:
    """What is wrong with a cell's state h, number `index`."""
    rows, size = expected
    if h.dim() != 2 and not torch.__version__.startswith(_WITHOUT_CELLS_DIMENSIONS):
        raise RuntimeError(f"Expected 2D hidden{index} (batch x hidden_size), but got {h.dim()}D tensor")
    if h.dim() > 0 and h.size(0) != rows:
        raise RuntimeError(f"Input batch size {rows} doesn't match hidden{index} batch size {h.size(0)}")
    if h.dim() > 1 and h.size(1) != size:
        raise RuntimeError(f"hidden{index} has inconsistent hidden_size: got {h.size(1)}, expected {size}")
    raise StructureError(f"hidden{index} should have as many dimensions as the input")
