"""What ``fastrnn.explain`` is asked about: a module and its input, or a shape, as sizes that were checked."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._cells import NAMES, RNN, SCAN, Variant
from . import costs

#: T, B where a module is explained without an input.
ASSUMED = (100, 16)
#: Up to here the plan's sums of operations and bytes are exact: steps and rows, units and features.
_MOST_STEPS, _MOST_UNITS = 2**31 - 1, 2**24


@dataclass
class Subject:
    """A stack of layers, all of one kind.

    ``scans`` are the layers of an SRU or SRU++, or of those in ``costs.ELEMENTWISE``; None for the others.
    What is not known here, and not given, is None. ``weights`` is how they are stored, ``weight_errors`` what
    that changed of each layer's.
    """

    name: str
    cell: str
    T: int
    B: int
    inputs: int
    hidden: int
    proj: int = 0
    num_layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    dropout: float = 0.0
    scans: list[costs.Layer] | list[costs.Elementwise] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    training: bool | None = None
    backend: str | None = None
    variant: Variant | None = None
    weights: str = "float32"
    weight_errors: Sequence[float] = ()
    notes: list[str] = field(default_factory=list)

    def check(self) -> Subject:
        for argument, size, least, most in (
            ("T", self.T, 1, _MOST_STEPS),
            ("B", self.B, 0, _MOST_STEPS),
            ("I", self.inputs, 1, _MOST_UNITS),
            ("H", self.hidden, 1, _MOST_UNITS),
        ):
            count(argument, size, least, most)
        return self


def read(
    module_or_shape: nn.Module | Sequence[int], input, cell, num_layers, bidirectional, proj_size, packed
) -> Subject:
    """The subject of explain's arguments of the same names."""
    if hasattr(module_or_shape, "explained"):  # a streamer
        return _of_streamer(module_or_shape, input, packed).check()
    if not isinstance(module_or_shape, nn.Module):
        return _of_shape(module_or_shape, input, cell, num_layers, bidirectional, proj_size, packed).check()
    module = module_or_shape
    found = _of_scan(module, input) if costs.is_scan(module) else _of_module(module, input, packed)
    if input is None:
        found.notes.insert(0, f"no input was given: T={found.T}, B={found.B} assumed")
    return found.check()


def _of_scan(module: nn.Module, input) -> Subject:
    first = getattr(module, "rnn_lst", [module])[0]
    inputs, hidden = module.input_size, module.hidden_size
    batch_first = getattr(module, "batch_first", False)
    T, B, packed = _sizes(ASSUMED if input is None else input, batch_first, inputs)
    return Subject(
        f"{type(module).__name__}({inputs}, {hidden})",
        "sru",
        T,
        B,
        inputs,
        hidden,
        packed=packed,
        scans=costs.layers_of(module),
        dtype=first.weight_c.dtype,
        device=first.weight_c.device,
        training=module.training,
        backend=first.backend,
    )


def _of_elementwise(module: nn.Module, input) -> Subject:
    """A MinGRU, MinLSTM, IndRNN or SLSTM."""
    inputs, hidden, cell = module.input_size, module.hidden_size, module._cell
    T, B, packed = _sizes(ASSUMED if input is None else input, module.batch_first, inputs)
    directions, heads = 2 if module.bidirectional else 1, getattr(module, "num_heads", 1)
    return Subject(
        f"{type(module).__name__}({inputs}, {hidden})",
        cell,
        T,
        B,
        inputs,
        hidden,
        num_layers=module.num_layers,
        bidirectional=module.bidirectional,
        packed=packed,
        scans=costs.elementwise_layers(cell, inputs, hidden, module.num_layers, directions, heads),
        dtype=module.weight_ih_l0.dtype,
        device=module.weight_ih_l0.device,
        training=module.training,
    )


def _of_streamer(streamer, input, packed: bool) -> Subject:
    layer, weights, errors = streamer.explained()
    found = _of_module(layer, (1, 1) if input is None else input, packed)
    found.training = False
    found.weights, found.weight_errors = weights, errors
    return found


def _of_quantized(module: nn.Module, input, packed: bool) -> Subject:
    T, B, packed = _sizes(ASSUMED if input is None else input, module.batch_first, module.input_size)
    return Subject(
        f"{type(module).__name__}({module.input_size}, {module.hidden_size})",
        NAMES[module.mode],
        T,
        B,
        module.input_size,
        module.hidden_size,
        module.proj_size,
        module.num_layers,
        module.bidirectional,
        packed,
        training=False,
        weights=module.weights,
        weight_errors=module.weight_errors,
    )


def _of_module(module: nn.Module, input, packed: bool) -> Subject:
    if hasattr(module, "weight_errors"):
        return _of_quantized(module, input, packed)
    if getattr(type(module), "_family", None) == "elementwise":
        return _of_elementwise(module, input)
    single = isinstance(module, nn.RNNCellBase)
    if not single and not isinstance(module, nn.RNNBase):
        raise TypeError(f"module_or_shape: {type(module).__name__} is no recurrent module")
    weight = module.weight_hh if single else module.weight_hh_l0
    inputs, hidden = module.input_size, module.hidden_size
    stack = {}
    if single:
        T, B = 1, _cell_rows(input, inputs)
    else:
        T, B, packed = _sizes(ASSUMED if input is None else input, module.batch_first, inputs)
        stack = {"proj": module.proj_size, "num_layers": module.num_layers}
        stack |= {"bidirectional": module.bidirectional, "dropout": module.dropout}
    found = Subject(
        f"{type(module).__name__}({inputs}, {hidden})",
        _cell_of(module, single),
        T,
        B,
        inputs,
        hidden,
        packed=packed,
        dtype=weight.dtype,
        device=weight.device,
        training=module.training,
        backend=getattr(module, "backend", "auto"),
        variant=vars(module).get("variant"),
        **stack,
    )
    if not type(module).__module__.startswith("fastrnn"):
        whose = type(module).__module__.split(".")[0]
        found.notes.append(f"this is {whose}'s module: fastrnn's would run like this")
    return found


def _of_shape(shape, input, cell, num_layers, bidirectional, proj_size, packed) -> Subject:
    if isinstance(shape, (str, bytes)):
        raise TypeError(f"module_or_shape: expected a module or (T, B, I, H), got {shape!r}")
    if input is not None:
        raise TypeError(f"input: a shape has T and B, expected None, got {_checks.kind(input)}")
    try:
        T, B, inputs, hidden = (operator.index(n) for n in shape)
    except (TypeError, ValueError):
        raise TypeError(f"module_or_shape: expected a module or (T, B, I, H), got {shape!r}") from None
    count("num_layers", num_layers, 1, 1 << 16)
    most_projected = hidden - 1 if cell in RNN and RNN[cell].projects else 0
    if count("proj_size", proj_size, 0, _MOST_UNITS) > max(0, most_projected):
        raise ValueError(
            f"proj_size: expected less than H={hidden} for an LSTM and 0 for others, got {proj_size}"
        )
    scans = None
    if cell in SCAN:
        scans, D = [], 2 if bidirectional else 1
        for number in range(num_layers):
            features = D * hidden if number else inputs
            scans.append(costs.Layer(features, hidden, D, 3 if features == D * hidden else 4))
    elif cell in costs.ELEMENTWISE:
        scans = costs.elementwise_layers(cell, inputs, hidden, num_layers, 2 if bidirectional else 1)
    elif cell not in RNN:
        known = ", ".join((*RNN, *SCAN, *costs.ELEMENTWISE))
        raise ValueError(f"cell: expected one of {known}, got {cell!r}")
    return Subject(
        f"{cell}({inputs}, {hidden})",
        cell,
        T,
        B,
        inputs,
        hidden,
        proj_size,
        num_layers,
        bidirectional,
        packed,
        scans=scans,
    )


def count(argument: str, value: object, least: int, most: int) -> int:
    """A whole number from ``least`` to ``most``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}: expected an integer, got {value!r}") from None
    if not least <= number <= most:
        bound = f"at least {least}" if number < least else f"at most {most}"
        raise ValueError(f"{argument}: expected {bound}, got {number}")
    return number


def _sizes(input, batch_first: bool, features: int) -> tuple[int, int, bool]:
    """T, B and whether packed, of an input or a (T, B) pair."""
    if isinstance(input, (PackedSequence, Tensor)):
        found = (input.data if isinstance(input, PackedSequence) else input).shape[-1:]
        if found and found[0] != features:
            raise ValueError(f"input: expected {features} features, the module's, got {found[0]}")
    if isinstance(input, PackedSequence):
        return len(input.batch_sizes), int(input.batch_sizes[0]), True
    if isinstance(input, Tensor):
        if input.dim() not in (2, 3):
            raise ValueError(f"input: expected 2 or 3 dimensions, got {input.dim()}")
        if input.dim() == 2:
            return input.size(0), 1, False
        T, B = input.shape[:2]
        return (B, T, False) if batch_first else (T, B, False)
    try:
        T, B = (operator.index(n) for n in input)
    except (TypeError, ValueError):
        raise TypeError(f"input: expected a tensor, a PackedSequence or (T, B), got {input!r}") from None
    return T, B, False


def _cell_of(module: nn.Module, single: bool) -> str:
    """The kernels' name of a module's recurrence."""
    if not single:
        return NAMES[module.mode]
    for kind, name in ((nn.LSTMCell, "lstm"), (nn.GRUCell, "gru")):
        if isinstance(module, kind) or type(module).__name__ == kind.__name__:
            return name
    return f"rnn_{getattr(module, 'nonlinearity', 'tanh')}"


def _cell_rows(input, features: int) -> int:
    """Rows of a cell's input."""
    if input is None:
        return 1
    if isinstance(input, Tensor) and input.dim() == 1:
        input = input.unsqueeze(0)
    if isinstance(input, Tensor):
        if input.dim() != 2:
            raise ValueError(f"input: expected 1 or 2 dimensions for a cell, got {input.dim()}")
        input = input.unsqueeze(0)
    T, B, _ = _sizes(input, False, features)
    if T != 1:
        raise ValueError(f"input: expected one step for a cell, (1, B), got {T}")
    return B
