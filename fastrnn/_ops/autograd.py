"""The fused path of one layer, differentiable: an autograd.Function around the raw operators.

A Python Function costs less at small sizes than an autograd formula registered with the operator, and it
is skipped altogether where nothing needs a gradient. One maker gives that of each family, the recurrent
layers' and the scan's.
"""

from collections.abc import Callable

import torch

from .. import reference
from . import library, torch_state
from .mode import NEEDS, SCAN_NEEDS
from .torch_state import compiling, cuda_mode, dispatch_modes, gradients, tracing

_X, _H0, _C0, _WEIGHTS = (NEEDS[name] for name in ("x", "h0", "c0", "weights"))
_SU, _SX, _SWEIGHTS, _SC0, _SV = (SCAN_NEEDS[name] for name in ("u", "x", "weights", "c0", "v"))

DROP_MASK_IS_CONSTANT = "drop_mask: expected a constant, got a tensor that requires a gradient"


_direct = library.direct()
_direct_forward, _direct_backward = _direct.forward, _direct.backward


def _rnn_backward(*arguments):
    """library.backward, or, where a compiler records it, its form without a list among the results, which
    some of them refuse; with the results of the operator."""
    if compiling() or dispatch_modes():
        arguments = library.tensors_saved(arguments)
        count = len(arguments[7])
        unlisted = library.backward_unlisted
        if count > library.UNLISTED:
            unlisted = library.backward_unlisted_variant
        found = unlisted(*arguments)
        return *found[:3], found[3 : 3 + count]
    return _direct_backward(*arguments)


#: Stands among the saved tensors for an output that was edited; nobody else's has a version like it.
_EDITED = torch.empty(0).zero_()


def saved(ctx, name: str, output: int | None = None) -> tuple:
    """ctx.saved_tensors, with None for the layer's output where that was edited since.

    The output is the caller's, who may add to it or mask it in place, as after torch's own layers on the CPU;
    and backward reads every h_{t-1} in it. To save a copy would cost everybody a fifth more memory. So an
    edited output is computed anew from what else was saved: one more pass forward, for those who edit.

    Args:
        name: the layer's, for messages. output: the output's place, None where it is not saved.

    Raises:
        RuntimeError: an input, a state or a weight was changed in place, and cannot be had again.
    """
    try:
        tensors = ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        try:
            if output is None:
                raise
            # With hooks autograd asks for no version. They stay, for a second pass backward.
            ctx._raw_saved_tensors[output].register_hooks(lambda _: None, lambda _: _EDITED)
            tensors = ctx.saved_tensors
        except RuntimeError:
            raise RuntimeError(
                f"{name}: the input, the initial state or a weight was changed in place between forward and "
                "backward, which needs it as it was (the output alone may be edited); make a new tensor "
                f"instead, or clone() it first. torch's message: {error}"
            ) from error
    # Under hooks of the caller's (save_on_cpu, checkpoint) it was not asked for either, and hooks that return
    # what they were given return the edited output. A compiler keeps account of edits itself.
    if output is not None and not compiling() and tensors[output]._version:
        return (*tensors[:output], None, *tensors[output + 1 :])
    return tensors


def _unedited(tensors: tuple, others: slice) -> list:
    """What to save of tensors all of which, but for the others, the program has too. A graph of
    torch.compile's counts no versions for an autograd.Function: where the program in it edits one, backward
    would read what it has become. Inductor leaves out the copies that nobody needs."""
    others = range(len(tensors))[others]
    return [t if t is None or i in others else t.clone() for i, t in enumerate(tensors)]


def _function(
    name: Callable,
    forward: Callable,
    gradients: Callable,
    again: Callable,
    *,
    constants: int,
    weights: slice,
    edited: bool,
) -> type[torch.autograd.Function]:
    """The autograd.Function of a family of layers.

    Its arguments are constants (tensors that have no gradient, or None), the options in a tuple, and then the
    inputs, which may have a gradient.

    Args:
        name: of the options; the layer's, for messages.
        forward: of all arguments; gives a tuple of results and one of what else backward needs.
        gradients: of the results' gradients, constants, options, what forward kept (the first one None where
            it was edited), inputs, and which of the inputs want a gradient; gives those, None for others.
        again: of the same without what forward kept; gives gradients that can be differentiated again.
        constants: how many there are of them.
        weights: which of the inputs nobody edits between forward and backward.
        edited: whether the first thing that forward kept is a result, which the caller may edit.
    """
    none = (None,) * (constants + 1)

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            results, kept = forward(*arguments)
            ctx.options, ctx.first_input = arguments[constants], constants + len(kept)
            inputs = arguments[constants + 1 :]
            if compiling():
                inputs = _unedited(inputs, weights)
                kept = _unedited(kept, slice(1 if edited else 0, None))
            ctx.save_for_backward(*arguments[:constants], *kept, *inputs)
            ctx.set_materialize_grads(False)
            return results

        @staticmethod
        def backward(ctx, *grads):
            options, first_input = ctx.options, ctx.first_input
            tensors = saved(ctx, name(*options), constants if edited else None)
            inputs = tensors[first_input:]
            for g in grads:
                if g is not None:
                    break
            else:
                return (*none, *(None,) * len(inputs))
            wanted = ctx.needs_input_grad[constants + 1 :]
            if torch_state.differentiable(*grads):
                return *none, *again(grads, tensors[:constants], options, inputs, wanted)
            kept = tensors[constants:first_input]
            return *none, *gradients(grads, tensors[:constants], options, kept, inputs, wanted)

    return Fused


def _rnn_forward(batch_sizes, lengths, reset, options, x, h0, c0, *weights):
    cell, bias, save, tier, keep_cells = options
    mode = save + tier + cuda_mode(x) if x.is_cuda else save
    forward = library.forward if compiling() or dispatch_modes() else _direct_forward
    y, hn, cn, gates, cells = forward(x, h0, c0, list(weights), batch_sizes, lengths, reset, cell, bias, mode)
    # The same is saved whichever of them it was: a checkpoint compares what its two passes save, of which one
    # alone may be looked on at. An empty tensor, of one dimension, says that there is nothing.
    kept = y, *(None if t is None or t.dim() == 1 else t for t in (gates, cells))
    return ((y, hn, cn, cells) if keep_cells else (y, hn, cn)), kept


def _rnn_gradients(grads, constants, options, kept, inputs, wanted):
    cell, bias, _, tier, keep_cells = options
    y, gates, cells = kept
    x, h0, c0, *weights = inputs
    need_weights = any(wanted[3:])
    mode = _X * wanted[0] + _H0 * wanted[1] + _C0 * wanted[2] + _WEIGHTS * need_weights
    kernels = tier + cuda_mode(x) if x.is_cuda else 0
    if y is None:
        y = library.forward(x, h0, c0, weights, *constants, cell, bias, kernels)[0]
    if not keep_cells:
        grads = *grads, None
    grad_x, grad_h0, grad_c0, grad_weights = _rnn_backward(
        *grads, x, h0, c0, weights, *constants, y, gates, cells, cell, bias, mode + kernels
    )
    return (
        grad_x if wanted[0] else None,
        grad_h0 if wanted[1] else None,
        grad_c0 if wanted[2] else None,
        *(grad_weights if need_weights else [None] * len(weights)),
    )


def _rnn_again(grads, constants, options, inputs, wanted):
    batch_sizes, lengths, reset = constants
    cell, bias, _, _, keep_cells = options
    x, h0, c0, *weights = inputs
    rows = {"batch_sizes": batch_sizes, "lengths": lengths, "reset": reset}
    options = {"cell": cell, "bias": bias, "keep_cells": keep_cells}
    return reference.gradients(grads, x, h0, c0, weights, wanted=wanted, **options, **rows)


_Layer = _function(
    lambda cell, *_: cell,
    _rnn_forward,
    _rnn_gradients,
    _rnn_again,
    constants=3,
    weights=slice(3, None),
    edited=True,
)


def _as_rows(step: tuple) -> tuple:
    return tuple(None if t is None else t.unsqueeze(0) for t in step)


def _as_step(rows: tuple) -> tuple:
    """New tensors (1, B, .) as (B, .): not views, which their owner could not edit in place."""
    return tuple(None if t is None else t.squeeze_(0) for t in rows)


def _step_forward(options, x, h, c, *weights):
    (_, hn, cn), kept = _rnn_forward(None, None, None, options, *_as_rows((x, h, c)), *weights)
    return _as_step((hn, None if c is None else cn)), kept


def _step_gradients(grads, constants, options, kept, inputs, wanted):
    grads, inputs = (None, *_as_rows(grads)), (*_as_rows(inputs[:3]), *inputs[3:])
    found = _rnn_gradients(grads, (None,) * 3, options, kept, inputs, wanted)
    return *_as_step(found[:3]), *found[3:]


def _step_again(grads, constants, options, inputs, wanted):
    grads, inputs = (None, *_as_rows(grads)), (*_as_rows(inputs[:3]), *inputs[3:])
    found = _rnn_again(grads, (None,) * 3, options, inputs, wanted)
    return *(None if g is None else g.squeeze(0) for g in found[:3]), *found[3:]


_Step = _function(
    lambda cell, *_: cell,
    _step_forward,
    _step_gradients,
    _step_again,
    constants=0,
    weights=slice(3, None),
    edited=False,
)


def step(x, h, c, weights, *, cell, bias):
    """One step of a cell on the CPU of which something requires a gradient, and which no compiler reads:
    x (B, I), h and c (B, H), c None without one. Returns h and c. It is ``layer`` of one step without the
    views around it, each of which autograd would keep account of and run backward."""
    return _Step.apply((cell, bias, library.SAVE_MODES["gates"], 0, False), x, h, c, *weights)


def layer(
    x,
    h0,
    c0,
    weights,
    *,
    cell,
    bias,
    batch_sizes=None,
    lengths=None,
    reset=None,
    save="gates",
    keep_cells=False,
    tier=0,
):
    """One recurrent layer, one or two directions, over a whole sequence.

    Args:
        x: (T, B, I), any strides, or with batch_sizes packed rows (N, I).
        h0, c0: (D, B, Hout) and, for an LSTM, (D, B, H).
        weights: for each direction w_ih, w_hh, [b_ih, b_hh], [w_hr].
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        batch_sizes: (T,) int64 on the CPU, as in a PackedSequence.
        lengths: (B,) int64 on the CPU, 0 to T, of a padded batch's rows; None: all T.
        reset: (T, B) bool on x's device, where a padded batch's rows begin anew; None: nowhere.
        save: what backward finds: "gates" or "recompute" (less memory, one more product a layer).
        keep_cells: whether there is a fourth result.
        tier: one of library.TIERS, which CUDA kernels; elsewhere 0.

    Returns:
        y (T, B, D*Hout) or (N, D*Hout); hn (D, B, Hout); cn (D, B, H) for an LSTM, else None; and with
        keep_cells an LSTM's c of every step, (D, N, H) in the compute dtype, N = T*B without batch_sizes, or
        None.

    Raises:
        RuntimeError: from the operator, naming the argument, what was expected and what came.
    """
    has_cell = c0 is not None
    rows = batch_sizes, lengths, reset
    if torch.compiler._is_exporting_flag:  # torch_state.exporting(): a program cannot hold the Function
        mode = library.SAVE_MODES[save] + (tier + cuda_mode(x) if x.is_cuda else 0)
        keep = keep_cells and has_cell
        y, hn, cn, cells = library.layer(x, h0, c0, weights, *rows, cell, bias, keep, mode)
    elif (
        gradients()
        and (
            x.requires_grad
            or h0.requires_grad
            or (c0 is not None and c0.requires_grad)
            or weights[0].requires_grad  # before a generator, which takes longer
            or any(w.requires_grad for w in weights)
        )
        and not tracing()
    ):
        options = cell, bias, library.SAVE_MODES[save], tier, keep_cells
        found = _Layer.apply(*rows, options, x, h0, c0, *weights)
        y, hn, cn, cells = found if keep_cells else (*found, None)
    else:
        mode = library.SAVE_MODES["recompute"] if keep_cells and has_cell else 0  # the cells and no gates
        if x.is_cuda:
            mode += tier + cuda_mode(x)
        y, hn, cn, _, cells = library.forward(
            x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode
        )
    if keep_cells:
        return (y, hn, cn, cells) if has_cell else (y, hn, None, None)
    return y, hn, cn if has_cell else None


def _scan_forward(mask_pad, drop_mask, batch_sizes, reset, options, *inputs):
    *options, keep_cells = options
    h, c, cells = library.sru_forward(*inputs, mask_pad, drop_mask, batch_sizes, reset, *options, True)
    return ((h, c, cells) if keep_cells else (h, c)), (cells,)


def _scan_gradients(grads, constants, options, kept, inputs, wanted):
    *options, keep_cells = options
    u, x, weights, bias, c0, v = wanted
    needs = _SU * u + _SX * x + _SWEIGHTS * (weights or bias) + _SC0 * c0 + _SV * v
    if not keep_cells:
        grads = *grads, None
    found = library.sru_backward(*grads, *inputs, *constants, *kept, *options, needs)
    return [g if w else None for g, w in zip(found, wanted, strict=True)]


def _scan_again(grads, constants, options, inputs, wanted):
    names = "mask_pad", "drop_mask", "batch_sizes", "reset"
    masks = dict(zip(names, constants, strict=True))
    options = dict(zip(("use_tanh", "scale", "bidirectional", "keep_cells"), options, strict=True))
    return reference.sru_scan_gradients(grads, *inputs, wanted=wanted, **masks, **options)


_Scan = _function(
    lambda *_: "sru",
    _scan_forward,
    _scan_gradients,
    _scan_again,
    constants=4,
    weights=slice(2, 4),
    edited=False,
)


def scan(
    u: torch.Tensor,
    x: torch.Tensor | None,
    weight_c: torch.Tensor,
    bias: torch.Tensor,
    c0: torch.Tensor,
    *,
    v: torch.Tensor | None = None,
    mask_pad: torch.Tensor | None = None,
    drop_mask: torch.Tensor | None = None,
    batch_sizes: torch.Tensor | None = None,
    reset: torch.Tensor | None = None,
    use_tanh: bool = False,
    scale: float = 1.0,
    bidirectional: bool = False,
    keep_cells: bool = False,
) -> tuple[torch.Tensor, ...]:
    """The elementwise recurrence of one SRU layer, one or two directions, over a whole sequence.

    The equations are those of :func:`fastrnn.reference.sru_scan`, which takes the same arguments. O = D*H
    features with the direction outermost.

    Args:
        u: (L, B, K, O) with contiguous features and any other strides, or with batch_sizes packed rows
            (N, K, O); float32, float64, bfloat16 or float16. K = 3 (candidate, forget gate, reset gate) or 4
            (and the skip term).
        x: (L, B, O) or (N, O), the highway's input, multiplied by scale; None for no skip term and for K = 4.
        weight_c, bias: (2, O), the row of the forget gate and that of the reset gate.
        c0: (B, O).
        v: (L, B, 2, O) or (N, 2, O), added to weight_c at each step.
        mask_pad: (L, B) bool, True where a step is padding: c passes unchanged, h is 0. Not with batch_sizes.
        drop_mask: (B, O), a constant on the highway's difference, the same at every step.
        batch_sizes: (L,) int64 on the CPU, as in a PackedSequence.
        reset: (L, B) bool, where rows begin anew. Not with batch_sizes.
        keep_cells: whether there is a third result.

    Returns:
        h (L, B, O) or (N, O); c (B, O), the state after the last step of each direction, in u's dtype; and
        with keep_cells c of every step, (N, O), N = L*B without batch_sizes, in the compute dtype.
        Gradients go to u, x, weight_c, bias, c0 and v.

    Raises:
        RuntimeError: from the operator, naming the argument, what was expected and what came; for a drop_mask
            that requires a gradient, as there is none.
    """
    constants, options = (mask_pad, drop_mask, batch_sizes, reset), (use_tanh, scale, bidirectional)
    if torch_state.exporting():  # see layer
        found = library.sru_scan(u, x, weight_c, bias, c0, v, *constants, *options, keep_cells)
        return found if keep_cells else found[:2]
    if gradients():
        if drop_mask is not None and drop_mask.requires_grad:
            raise RuntimeError(DROP_MASK_IS_CONSTANT)
        if any(t is not None and t.requires_grad for t in (u, x, weight_c, bias, c0, v)) and not tracing():
            return _Scan.apply(*constants, (*options, keep_cells), u, x, weight_c, bias, c0, v)
    found = library.sru_forward(u, x, weight_c, bias, c0, v, *constants, *options, keep_cells)
    return found if keep_cells else found[:2]
