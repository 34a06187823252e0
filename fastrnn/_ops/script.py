"""The operators as TorchScript calls and torch.jit.trace records them.

**Lists.** An operator that takes a list has two overloads; csrc/ops/schema.cpp says why. TorchScript takes
the one called ``script``; here it becomes a call of the other with a list of its own, which comes of the way
through Python. Without this module, in a program of C++, a list that is passed twice is empty the second
time.

**Traces.** While torch.jit.trace is at work, layers call the raw operators, gradients or not, and these have
no derivative. What is recorded in their place are the operators of ``differentiable``: a program trains,
in whatever mode it was traced. Both modes must come here by one way, as torch's check of a trace makes a
second one without gradients and compares them to the letter, the names that it takes from the callers'
variables included. To register this for the dispatch key of tracing costs all other calls nothing.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from . import differentiable, library

# As torch does with its own: what a layer asks of an input's size are its checks.
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"fastrnn\b")

_library = torch.library.Library("fastrnn", "IMPL")

_WITH_LISTS = (
    "rnn_forward",
    "rnn_backward",
    "rnn_backward_unlisted",
    "rnn_backward_unlisted_variant",
    "rnn_layer",
    "rnn_pack",
    "rnn_stream",
    "rnn_quantized",
)


def _own_list(name: str) -> None:
    packet = getattr(torch.ops.fastrnn, name)
    # A dispatch key that every call passes, before that of its device and in inference mode too.
    _library.impl(packet.script, packet.default, "BackendSelect")
    torch.library.register_fake(f"fastrnn::{name}.script", packet.default)
    if packet.default in differentiable.derivatives:
        _library.impl(packet.script, differentiable.derivatives[packet.default], "Autograd")


for _name in _WITH_LISTS:
    _own_list(_name)


def _recorded_as(name: str):
    """Register a function for what torch.jit.trace records in an operator's place."""
    return lambda function: _library.impl(getattr(torch.ops.fastrnn, name).default, function, "Tracer")


@_recorded_as("rnn_forward")
def _(*args):
    *arguments, mode = args
    saves = mode % library.TIERS["one_cta"]  # of inference: nothing, or every step's cell state
    # The mode of a program that may train: the call's own is inference, which has no use for gates.
    mode += library.SAVE_MODES["gates"] - saves
    y, hn, cn, cells = library.layer(*arguments, saves != 0, mode)
    return y, hn, cn, _nothing(y), cells


@_recorded_as("sru_forward")
def _(*args):
    return library.sru_scan(*args)


def _nothing(x: Tensor) -> Tensor:
    return x.new_empty((0,), dtype=library.compute_dtype(x))
