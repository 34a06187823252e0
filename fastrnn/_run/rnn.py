"""The body of the recurrent layers: checks, default states, layers, directions, dropout, packing, autocast.

``fastrnn.functional`` and the modules both end here, so that an input is checked once and in one place.
One layer over the whole sequence is one call of the fused op, or of its definition in ``fastrnn.reference``.
Shape letters are those of ``fastrnn.functional``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks, reference
from .._cells import RNN, Variant
from .._ops import autograd, library, torch_layer, torch_state
from .._ops.torch_state import AUTOCAST_TYPES, autocasting
from .._plan import route
from .._plan.route import Route
from . import native, variant, wavefront
from .rows import Rows, states
from .tuning import calls


class Stack(NamedTuple):
    """A stack of recurrent layers without its weights.

    ``name`` is what messages call it and ``cell`` what the kernels do: "lstm", "gru", "rnn_tanh", "rnn_relu".
    ``proj_size`` is 0 without a projection, ``variant`` None for the plain cell. The rest is what the
    modules' arguments of the same names say.
    """

    name: str
    cell: str
    input_size: int
    hidden_size: int
    proj_size: int
    bias: bool
    num_layers: int
    dropout: float
    training: bool
    bidirectional: bool
    batch_first: bool
    save: str
    backend: str
    variant: Variant | None = None


def runner(way: Route) -> Callable:
    """The function that computes a layer where the kernels do, or the reference; for torch's own layer what a
    compiler records of it, and else what comes where torch has none for the case."""
    kind = way.runner
    if kind == "native":
        if torch_state.compiling():
            return torch_layer.layer
        kind = way.otherwise
    if kind != "fused":
        return reference.layer
    return functools.partial(autograd.layer, tier=way.tier) if way.tier else autograd.layer


def _way(
    stack: Stack,
    x: Tensor,
    weights,
    rows: Rows | None,
    batch: int,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor | None] = (),
    autocast: bool = False,
) -> Route:
    """Who computes the layers. On a GPU that hangs on what is known of it and of layers like these."""
    known = x.is_cuda and stack.backend in ("auto", "fused") and library.cuda_loaded
    if not known or stack.variant is not None:  # of a variant there is nothing to know, nor torch's own layer
        return route.of(x, stack.backend, masked=rows is not None, variant=stack.variant)
    if rows is not None or stack.backend == "fused":
        calls.ready(x)
        return route.of(x, stack.backend, masked=rows is not None)
    pieces = wavefront.asked()
    if pieces is not None and pieces > 1:  # by the caller, and it is made of our kernels
        return route.of(x, stack.backend, doubt=None)
    training = torch_state.gradients() and any(
        t is not None and t.requires_grad for t in (x, *states, *weights)
    )
    options = {"autocast": autocast, "whole": pieces == 1}
    doubt, pieces = calls.answer(stack, x, batch, batch_sizes, training, **options)
    return route.of(x, stack.backend, doubt=doubt)._replace(pieces=pieces)


def run(
    stack: Stack,
    input: Tensor,
    hx: Tensor | Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    rows: Rows | None = None,
) -> tuple:
    """Check the input and hx, and run the layers.

    The weights, flat, are known to have the stack's sizes. ``rows``: None for a padded batch of equal ones.
    Returns output, h_n and c_n (None unless LSTM), with the dimensions and order of the input; and where
    every step's states are kept, h and c (None unless LSTM) of every layer and step, (L, T, B, D*P) and
    (L, T, B, D*H), laid out as the output.
    """
    name = stack.name
    dims = _checks.tensor(name, "input", input).dim()
    if input.layout is not torch.strided or input.is_nested:
        input = _checks.dense(name, input)
    batch_sizes = order = None
    if rows is not None:
        batch_sizes, order = rows.batch_sizes, rows.sorted_indices
        if rows.only_packed():
            rows = None
    packed, batched = batch_sizes is not None, True
    if packed:
        _checks.batch_sizes_form(batch_sizes)
        x = input
    elif dims == 3:
        x = input.transpose(0, 1) if stack.batch_first else input
    elif dims == 2:
        x, batched = input.unsqueeze(1), False
    else:
        tensor = " tensor" if name == "RNN" else ""
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dims}D{tensor} instead")

    h = c = None
    if hx is not None:
        h, c = _checks.pair(name, hx) if RNN[stack.cell].has_cell else (_checks.tensor(name, "hx", hx), None)
        if not packed:
            _checks.hidden_dims(h, c, batched)
            if not batched:
                h, c = h.unsqueeze(1), (None if c is None else c.unsqueeze(1))

    w0 = weights[0]
    autocast = autocasting(x)
    if x.dtype != w0.dtype and not autocast:
        _checks.input_dtype(x.dtype, w0.dtype)
    if packed and dims != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {dims}")
    shape = x.shape
    if shape[-1] != stack.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {stack.input_size}, got {shape[-1]}"
        )
    if packed and h is not None and torch_state.compiling():
        batch = h.size(1)  # a graph cannot compare sizes with values: the kernels will
    else:
        batch = shape[1] if not packed else first_rows(batch_sizes)
    if h is not None:
        _checks.hidden_size(stack, h, c, batch)
        h, c = permute(h, order), permute(c, order)
    if shape[0] == 0 and not packed:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    # The kernels look at everything, but a weight on "meta" would take the call away from them.
    device = x.device
    for w in weights:
        if w.device != device:
            _checks.same_kind(x, [("parameter", w)])

    try:
        way = _way(stack, x, weights, rows, batch, batch_sizes, (h, c), autocast)
        if way.asked:  # autocast included
            found = native.layers(stack, x, h, c, weights, batch, batch_sizes)
        elif autocast:
            found = _autocast_layers(stack, way, x, h, c, weights, batch, batch_sizes, rows)
        else:
            found = _layers(stack, way, x, h, c, weights, batch, batch_sizes, rows)
    except RuntimeError:
        # Asked here, where no other call has to wait for the answer.
        if x.is_cuda:
            calls.after_an_error()
        if rows is not None or stack.variant is not None or not native.per_sample(weights):
            raise
        with native.taken_apart():
            found = native.layers(stack, x, h, c, weights, batch, batch_sizes)

    if packed or (batched and not stack.batch_first):
        return found
    y, h, c, *states = found
    if states:
        states = [
            tuple(s if s is None else s.transpose(1, 2) if batched else s.squeeze(2) for s in states[0])
        ]
    if batched:
        return y.transpose(0, 1), h, c, *states
    return y.squeeze(1), h.squeeze(1), (None if c is None else c.squeeze(1)), *states


def first_rows(batch_sizes: Tensor) -> int:
    """The rows of the first step, which for a program is a number that it reads when it runs."""
    if torch_state.tracing():
        return batch_sizes[0]
    if not torch_state.exporting():
        return int(batch_sizes[0])
    rows = batch_sizes[0].item()
    torch._check(rows >= 0)
    return rows


def permute(state: Tensor | None, indices: Tensor | None) -> Tensor | None:
    """Reorder the rows of a state (L*D, B, .), where there are both a state and an order."""
    return state if state is None or indices is None else state.index_select(1, indices)


def _autocast_layers(stack, way, x, h, c, weights, batch, batch_sizes, rows):
    """The layers under autocast, in the dtypes of torch's."""
    # On a device of torch's alone its layers know best what autocast means there.
    if way.runner == "native" and not x.is_cpu and not torch_state.compiling():
        found = native.layers_instead(stack, x, h, c, weights, batch, batch_sizes)
        if found is not None:
            return found
    packed, projected = batch_sizes is not None, stack.proj_size > 0
    x, h, c, weights, round_to = autocast_inputs(stack.cell, projected, packed, x, h, c, weights)
    with torch.autocast(x.device.type, enabled=False):
        y, h, c, *states = _layers(stack, way, x, h, c, weights, batch, batch_sizes, rows)
    if round_to is not None:
        y, h = y.to(round_to), h.to(round_to)
        states = [(every_h.to(round_to), every_c) for every_h, every_c in states]
    return y, h, c, *states


def _layers(stack, way, x, h, c, weights, batch, batch_sizes, rows):
    """The layers themselves. h and c are (L*D, B, .) or None for zeros; rows None where there is nothing to
    say but batch_sizes."""
    if way.runner == "none":
        raise RuntimeError(way.why)
    cell, bias, save = stack.cell, stack.bias, stack.save
    directions = 2 if stack.bidirectional else 1
    layer = runner(way)
    if way.runner != "fused":
        _checks.same_kind(x, [*(("parameter", w) for w in weights), ("hidden", h), ("cell", c)])
        if batch_sizes is not None:
            _checks.batch_sizes_values(batch_sizes, x.size(0))
        if rows is not None:
            rows.check_lengths(x.size(0))
        if way.runner == "native" and layer is not torch_layer.layer:
            found = native.layers_instead(stack, x, h, c, weights, batch, batch_sizes)
            if found is not None:
                return found
    if h is not None:
        _checks.same_kind(x, (("hidden", h), ("cell", c)))

    if stack.variant is not None:
        layer = variant.runner(layer, stack.variant, stack.training)

    # Zero states are the same for every layer, and without projection for h and c too (torch.compile wants
    # two tensors there).
    zero_h = zero_c = None
    if h is None:
        zero_h = zero_c = x.new_zeros((directions, batch, stack.proj_size or stack.hidden_size))
        if not RNN[cell].has_cell:
            zero_c = None
        elif stack.proj_size or torch_state.compiling():
            zero_c = x.new_zeros((directions, batch, stack.hidden_size))

    if stack.num_layers == 1:
        h, c = (zero_h, zero_c) if h is None else (h, c)
        if rows is None:
            return layer(x, h, c, weights, cell=cell, bias=bias, batch_sizes=batch_sizes, save=save)
        y, h, c, *cells = layer(x, h, c, weights, cell=cell, bias=bias, save=save, **rows.options(cell))
        if rows.ended is not None:
            h, c = rows.last(h), rows.last(c)
        return (y, h, c, states([y], cells)) if rows.keep_states else (y, h, c)

    per_layer = len(weights) // stack.num_layers
    dropout = _checks.probability(stack.name, stack.dropout) if stack.training else 0.0
    equal = batch_sizes is None and rows is None
    if directions == 1 and equal and not dropout and way.runner == "fused" and stack.variant is None:
        pieces = wavefront.pieces(x, way.pieces)
        if pieces > 1:
            starts = (
                [(zero_h, zero_c)] * stack.num_layers
                if h is None
                else [(h[k : k + 1], None if c is None else c[k : k + 1]) for k in range(stack.num_layers)]
            )
            of_layers = [weights[k * per_layer : (k + 1) * per_layer] for k in range(stack.num_layers)]
            return wavefront.run(layer, x, starts, of_layers, pieces, cell=cell, bias=bias, save=save)
    options = {"batch_sizes": batch_sizes} if rows is None else rows.options(cell)
    last_h, last_c, outputs, every_c = [], [], [], []
    for k in range(stack.num_layers):
        if k and dropout:
            x = torch.nn.functional.dropout(x, dropout, True)
        own = slice(k * directions, (k + 1) * directions)
        x, hn, cn, *cells = layer(
            x,
            zero_h if h is None else h[own],
            zero_c if c is None else c[own],
            weights[k * per_layer : (k + 1) * per_layer],
            cell=cell,
            bias=bias,
            save=save,
            **options,
        )
        last_h.append(hn)
        last_c.append(cn)
        outputs.append(x)
        every_c += cells
    if rows is not None and rows.ended is not None:
        last_h, last_c = [rows.last(s) for s in last_h], [rows.last(s) for s in last_c]
    h, c = torch.cat(last_h), (torch.cat(last_c) if RNN[cell].has_cell else None)
    return (x, h, c, states(outputs, every_c)) if rows is not None and rows.keep_states else (x, h, c)


def autocast_inputs(cell: str, projected: bool, packed: bool, x, h, c, weights):
    """Cast everything to the dtype in which torch's own modules answer under autocast.

    On a GPU that is the autocast dtype. On the CPU torch runs the matrix products in the autocast dtype and
    oneDNN's LSTM, which takes whole sequences (``packed`` false) without projection, altogether. In the rest
    the state decides: RNN and its cell answer in the autocast dtype; GRU, the other LSTMs and their cells in
    the wider of that and the state's, which by default is the input's. Here the whole layer runs in the
    answer's dtype, at least as precisely as in torch. With projections torch rounds h, and not c.

    Returns x, h, c, weights, and a dtype to round output and h to, or None.
    """
    if x.dtype not in AUTOCAST_TYPES:
        _checks.same_kind(x, [("parameter", w) for w in weights])
        return x, h, c, weights, None
    to, round_to = torch_state.autocast_dtype(x), None
    card = RNN[cell]
    if x.is_cpu and card.carries is not None:
        layer_of_onednn = card.onednn and not packed and not projected
        if not layer_of_onednn or x.dtype == torch.float16:
            round_to = to if projected else None
            state = (h, c)[card.carries]
            state_type = x.dtype if state is None else state.dtype
            if state_type in AUTOCAST_TYPES:
                to = torch.promote_types(to, state_type)

    def cast(t):
        return t.to(to) if t is not None and t.dtype in AUTOCAST_TYPES else t

    x, h, c, weights = cast(x), cast(h), cast(c), [cast(w) for w in weights]
    _checks.same_kind(x, [("parameter", w) for w in weights])
    return x, h, c, weights, round_to
