"""The methods of torch.nn's layers that their forward() calls on the way, for subclasses that override one.

forward() here has checks and permutations of its own, which cost less. Classes and instances that have
another ``check_input`` or ``permute_hidden`` than torch.nn's get the calls that torch.nn makes, in its order;
fastrnn's own checks follow.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._cells import NAMES as CELLS
from .._cells import WITH_CELL

NAMES = frozenset(
    (
        "check_input",
        "check_forward_args",
        "check_hidden_size",
        "get_expected_hidden_size",
        "get_expected_cell_size",
        "permute_hidden",
    )
)


def in_class(cls: type) -> bool:
    """Whether a class has one of the methods from elsewhere than torch.nn and fastrnn."""
    return any(_foreign(getattr(cls, name, None)) for name in NAMES)


def _foreign(method) -> bool:
    if method is None:
        return False
    module = getattr(method, "__module__", None) or ""
    return module != "torch.nn.modules.rnn" and not module.startswith("fastrnn.modules.")


def before(layer, input: Tensor | PackedSequence, hx):
    """torch.nn's calls before the layers run. Returns hx, which they may have changed, with the dimensions
    that it had; an input that is none is left to the checks that follow."""
    lstm, packed = CELLS[layer.mode] in WITH_CELL, isinstance(input, PackedSequence)
    data, batch_sizes, order = input[:3] if packed else (input, None, None)
    if not isinstance(data, Tensor) or (not packed and data.dim() not in (2, 3)):
        return hx
    if hx is not None:
        if lstm:
            hx = tuple(_checks.pair(layer._name, hx))
        else:
            _checks.tensor(layer._name, "hx", hx)
    batched = packed or data.dim() == 3
    if not packed and hx is not None:
        _checks.hidden_dims(*(hx if lstm else (hx, None)), batched)
    rows = 0 if layer.batch_first and not packed else 1
    if not batched:
        data = data.unsqueeze(rows)
        if hx is not None:
            hx = tuple(s.unsqueeze(1) for s in hx) if lstm else hx.unsqueeze(1)
    given = hx is not None
    state = hx if given else _zeros(layer, data, int(batch_sizes[0]) if packed else data.size(rows))
    if lstm:
        if not packed:
            layer.check_forward_args(data, state, None)
        if given:
            state = layer.permute_hidden(state, order)
    else:
        if given:
            state = layer.permute_hidden(state, order)
        layer.check_forward_args(data, state, batch_sizes)
    if not given:
        return None
    if not batched:
        state = tuple(s.squeeze(1) for s in state) if lstm else state.squeeze(1)
    return state


def _zeros(layer, data: Tensor, rows: int):
    states = layer.num_layers * (2 if layer.bidirectional else 1)
    h = data.new_zeros((states, rows, layer.proj_size or layer.hidden_size))
    if CELLS[layer.mode] not in WITH_CELL:
        return h
    return h, data.new_zeros((states, rows, layer.hidden_size))
