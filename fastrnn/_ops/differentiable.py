"""Operators whose derivatives the dispatcher knows: what tracers write into a program in a layer's place.

Eager code wraps the raw operators in an autograd.Function (``autograd``), which a traced program cannot hold:
torch.export would keep what the Function calls, and with it lose the derivative; torch.jit.trace cannot save
it. The operators here are whole layers, ``fastrnn::rnn_layer`` and ``fastrnn::sru_scan``.

Their kernels are inference, which saves nothing. Where a gradient is wanted when the program runs, the
registration below puts the same Function around the raw operators as eager code does: so a program trains
like the module that it was made of, whatever the mode it was traced in. Eager code does not call them, as it
would pay for the way through the dispatcher into Python.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .. import reference
from . import autograd, library, torch_state

_SAVES = library.TIERS["one_cta"]  # below it a mode says what is saved
_library = torch.library.Library("fastrnn", "IMPL")
#: What is registered here, by operator.
derivatives: dict[torch._ops.OpOverload, Callable] = {}


def _derivative(op: torch._ops.OpOverload, inference: Callable) -> Callable:
    """Register a function as what an operator does where one of its tensors requires a gradient, and in code
    that AOTInductor compiles, which has no gradients, a call of raw operators: they go no way into Python."""

    def register(function: Callable) -> Callable:
        def with_gradients(*args):
            if library.patched and torch_state.exporting():
                _exported_in_patch()
            if torch_state.gradients() and any(t.requires_grad for t in _tensors(args)):
                return function(*args)
            if _compiled_ahead():
                return inference(*args)
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)

        _library.impl(op, with_gradients, "Autograd")
        derivatives[op] = with_gradients
        return function

    return register


def _compiled_ahead() -> bool:
    inductor = sys.modules.get("torch._inductor.virtualized")
    return inductor is not None and inductor.V.aot_compilation


def _exported_in_patch() -> None:
    """A word to those whose program would need no fastrnn but for the block around its export. It is said
    here as nothing else of this package runs when strict=True has torch.export read bytecode."""
    warnings.warn(
        "torch.export within fastrnn.patch(): the program calls fastrnn's operators, and fastrnn has to be "
        "imported where it is loaded; export outside the block for a program of torch's alone",
        stacklevel=3,
    )


def _tensors(args: Sequence) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from arg


def _options(x: Tensor, mode: int) -> tuple[int, int]:
    """What a mode says is saved, and the tier. Whether TensorFloat-32 is allowed is looked up when the layer
    runs, as in eager code."""
    return mode % _SAVES, (mode & library.TIER_MASK if x.is_cuda else 0)


def _raw_layer(*args):
    *others, keep_cells, mode = args
    keeps = library.SAVE_MODES["recompute"] if keep_cells else 0
    if args[0].is_cuda:
        keeps += mode - mode % _SAVES
    y, hn, cn, _, cells = library.forward(*others, keeps)
    return y, hn, cn, cells


@_derivative(library.layer, _raw_layer)
def _rnn_layer(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, keep_cells, mode):
    if torch_state.transformed():
        rows = {"batch_sizes": batch_sizes, "lengths": lengths, "reset": reset}
        y, hn, cn, *cells = reference.layer(
            x, h0, c0, weights, cell=cell, bias=bias, keep_cells=keep_cells, **rows
        )
    else:
        options = cell, bias, *_options(x, mode), keep_cells
        y, hn, cn, *cells = autograd._Layer.apply(batch_sizes, lengths, reset, options, x, h0, c0, *weights)
    if cn is None:
        cn = x.new_empty((0,))
    if not keep_cells or cells[0] is None:
        cells = [x.new_empty((0,), dtype=library.compute_dtype(x))]
    return y, hn, cn, *cells


@_derivative(library.sru_scan, library.sru_forward)
def _sru_scan(u, x, weight_c, bias, c0, v, mask_pad, drop_mask, batch_sizes, reset, *options):
    if drop_mask is not None and drop_mask.requires_grad:
        raise RuntimeError(autograd.DROP_MASK_IS_CONSTANT)
    use_tanh, scale, bidirectional, keep_cells = options
    if torch_state.transformed():
        masks = {"v": v, "mask_pad": mask_pad, "drop_mask": drop_mask, "batch_sizes": batch_sizes}
        options = {"use_tanh": use_tanh, "scale": scale, "bidirectional": bidirectional, "reset": reset}
        found = reference.sru_scan(u, x, weight_c, bias, c0, keep_cells=keep_cells, **masks, **options)
    else:
        constants = mask_pad, drop_mask, batch_sizes, reset
        found = autograd._Scan.apply(*constants, options, u, x, weight_c, bias, c0, v)
    return found if keep_cells else (*found, u.new_empty((0,), dtype=library.compute_dtype(u)))
