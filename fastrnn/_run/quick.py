"""The shortest way from a module to the operator: an ordinary call of one layer on the CPU.

A step of a small layer takes the kernel a microsecond or two; what a program waits for is the Python before
it. So everything is asked in one go, without gradients by a call of C (csrc/python_module.cpp), and what does
not hold is no error here: None sends the call the long way (``rnn.run``), which does what there is to do or
says in torch's words what is wrong. An error of the operator, which checks all of its arguments before it
computes anything, does the same.
"""

from __future__ import annotations

from operator import is_

from torch import Tensor

from .._cells import NAMES, RNN
from .._ops import autograd, library
from .._ops.torch_state import (
    any_autocast,
    compiling,
    dispatch_modes,
    forward_ad,
    function_modes,
    functorch,
    tracing,
)
from .._ops.torch_state import gradients as gradients_wanted
from .._plan.route import fused_on_cpu

_CELLS = {mode: (name, RNN[name].has_cell) for mode, name in NAMES.items()}
_direct = library.direct(dict(NAMES), fused_on_cpu)
_forward, _inference = _direct.forward, _direct.module

#: The operator's, and those of an access. Not more: what a hook of the caller's raises is the caller's.
_ERRORS = (RuntimeError, TypeError, KeyError, IndexError)


def one_layer(module, x: Tensor, hx) -> tuple | None:
    """Output, h_n and c_n (None unless LSTM) of a module of one layer for what its forward() was given, or
    None for whatever is out of the ordinary."""
    if compiling():
        return None
    gradients = gradients_wanted()
    if not gradients:
        found = _inference(module.__dict__, x, hx)
        if found is not None:
            return found
    if (
        type(x) is not Tensor
        or not x.is_cpu
        or functorch()
        or forward_ad._current_level >= 0
        or any_autocast()
        or dispatch_modes()
        or function_modes()
        or tracing()
    ):
        return None
    try:
        fields = module.__dict__  # half the time of nn.Module's own way to them
        # The list at hand is that of the parameters; else it has to be made anew.
        weights, parameters = fields["_flat_weights"], fields["_parameters"]
        batch_first, dtype, shape = fields["batch_first"], x.dtype, x.shape
        if (
            (fields["backend"], dtype) not in fused_on_cpu
            or fields["num_layers"] != 1
            or "variant" in fields
            or len(weights) > len(parameters)
            or not all(map(is_, weights, parameters.values()))
            or shape[-1] != fields["input_size"]
        ):
            return None
        batched = len(shape) == 3
        if not batched:
            if len(shape) != 2:
                return None
            x, shape, batch_first = x.unsqueeze(1), (shape[0], 1), False
        cell, has_cell = _CELLS[fields["mode"]]
        if hx is None:
            if fields["proj_size"]:
                return None
            rows, directions = shape[0 if batch_first else 1], 2 if fields["bidirectional"] else 1
            hidden = fields["hidden_size"]
            h = x.new_zeros((directions, rows, hidden))
            c = h if has_cell else None
        elif has_cell:
            if type(hx) is not tuple or len(hx) != 2:
                return None
            h, c = hx
            if type(h) is not Tensor or type(c) is not Tensor:
                return None
            if not batched:
                h, c = _of_one(h), _of_one(c)
        else:
            h, c = hx, None
            if type(h) is not Tensor:
                return None
            if not batched:
                h = _of_one(h)
        if batch_first:
            x = x.transpose(0, 1)
        bias = fields["bias"]
        if gradients:
            y, h, c = autograd.layer(x, h, c, weights, cell=cell, bias=bias, save=fields["save"])
        else:
            y, h, c, _, _ = _forward(x, h, c, weights, None, None, None, cell, bias, 0)
    except _ERRORS:  # the long way meets it again, and says what it means
        return None
    if not batched:
        return y.squeeze(1), h.squeeze(1), (c.squeeze(1) if has_cell else None)
    return (y.transpose(0, 1) if batch_first else y), h, (c if has_cell else None)


def _of_one(state: Tensor) -> Tensor:
    """The state (D, .) of a single sequence as (D, 1, .); another's fits nothing."""
    return state.unsqueeze(1) if state.dim() == 2 else state.new_empty(0)
