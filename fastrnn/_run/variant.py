"""A layer of a variant: what training draws for it, what is done to its weights before a kernel sees them.

The function here stands before the one that computes a layer, the fused or the reference's: both get the same
weights and masks, and so compute the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout

from .._cells import Variant, card_of
from .._cells.stages import coupled, dense
from .._cells.variant import for_kernels, spell
from .._ops import torch_state


def runner(layer: Callable, variant: Variant, training: bool) -> Callable:
    """``layer`` for the plain cells as a function of the same arguments for a variant of them."""
    return functools.partial(_layer, layer, variant, training)


def _layer(
    layer: Callable,
    variant: Variant,
    training: bool,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    cell: str,
    **options,
) -> tuple:
    directions, gates, weights = h0.size(0), card_of(cell).gates, list(weights)
    each = len(weights) // directions
    projected = h0.size(-1) != weights[0].size(0) // gates
    told, recurrent = for_kernels(variant, x.is_cpu, projected, training)
    if training and variant.weight_dropout:
        for i in range(1, len(weights), each):  # each direction's w_hh
            weights[i] = _dropped(weights[i], variant.weight_dropout)
    if told.coupled != variant.coupled:
        of_gates = 4 if options["bias"] else 2  # behind them may be a projection, which has none
        weights = [coupled(w) if i % each < of_gates else w for i, w in enumerate(weights)]
    if told.heads != variant.heads:
        for i in range(1, len(weights), each):
            weights[i] = dense(weights[i], variant.heads, gates)
    masks = _masks(variant, training, recurrent, x, h0, c0)
    return layer(x, h0, c0, weights + masks, cell=spell(cell, told, recurrent), **options)


def _dropped(w: Tensor, p: float) -> Tensor:
    if w.is_cpu:
        return dropout(w, p, True)
    # A GPU draws by the size of an element.
    return w * dropout(w.new_ones(w.shape, dtype=torch.float32), p, True).to(w.dtype)


def _masks(variant: Variant, training: bool, recurrent: bool, x: Tensor, h0: Tensor, c0) -> list[Tensor]:
    """The masks of a layer in their order, see ``Masks``. Drawn from torch's generator: first that of h
    before the product, then those of zoneout."""
    drop, kept = [], []
    if recurrent:
        p = variant.recurrent_dropout
        mask = _bernoulli(x, h0.shape, 1 - p)
        drop.append(mask if p == 1 else mask / (1 - p))
    directions = h0.size(0)
    for p, state in zip(variant.zoneout, (h0, c0), strict=True):
        if p:
            features = directions * state.size(-1)
            if training:
                kept.append(_bernoulli(x, (*x.shape[:-1], features), p))
            else:
                kept.append(x.new_full((features,), p).expand(*x.shape[:-1], features))
    return kept + drop


#: Numbers from which on masks are drawn as bits: fewer take no time.
_MANY = 4096


def _bernoulli(x: Tensor, shape: Sequence[int], p: float) -> Tensor:
    """1 with probability p, else 0, in x's dtype; the same ones in every dtype.

    torch draws a double for each number on the CPU, which for the masks of zoneout is a tenth of a training
    step. Of many numbers each gets 16 random bits there: p is then exact to 2^-17.
    """
    eager = not (torch_state.recorded() or torch_state.transformed() or torch_state.tracing())
    if x.is_cpu and eager:
        count = math.prod(shape)
        if count >= _MANY and p < 1:
            bits = x.new_empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
            bits = bits.view(torch.int16)[:count].view(shape)
            # Into the dtype at once, which takes a quarter of the time of bools and their conversion.
            return torch.lt(bits, round(p * 2**16) - 2**15, out=x.new_empty(shape))
    # A GPU draws other numbers for float64.
    drawn = torch.float32 if x.dtype == torch.float64 else x.dtype
    return x.new_empty(shape, dtype=drawn).bernoulli_(p).to(x.dtype)
