"""A step of a variant in plain torch, stage by stage: product, gates and cell, state.

What lies between the product and the state is the cell's own (``lstm.gates``, ``gru.gates``, ``rnn.gates``);
what is here is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from .card import Card, State
from .variant import Variant, Weights


def inputs(x: Tensor, own: Weights, variant: Variant) -> Tensor:
    """The input's part of the gates, W_ih x + b_ih, of any number of steps."""
    if not variant.norm:
        return linear(x, own.weight_ih, own.bias_ih)
    gx = norm(linear(x, own.weight_ih), own.norm_ih, None, variant)
    return gx if own.bias_ih is None else gx + own.bias_ih


def norm(a: Tensor, gain: Tensor, bias: Tensor | None, variant: Variant) -> Tensor:
    """Layer normalisation over the last dimension."""
    return layer_norm(a, gain.shape, gain, bias, variant.norm_eps)


def product(h: Tensor, own: Weights, variant: Variant, first: int, last: int, gates: int) -> Tensor:
    """W_hh h of the gates from ``first`` to before ``last``, (B, (last-first)*H), without bias."""
    hidden = own.weight_hh.size(0) // gates
    w_hh = own.weight_hh[first * hidden : last * hidden]
    heads = variant.heads
    if heads == 1:
        return linear(h, w_hh)
    # Each head's units see their own part of h alone.
    parts = h.unflatten(-1, (heads, -1)).unsqueeze(-3)  # (B, 1, heads, P/heads)
    blocks = w_hh.unflatten(0, (last - first, heads, -1))  # (gates, heads, H/heads, P/heads)
    return (blocks @ parts.unsqueeze(-1)).squeeze(-1).flatten(-3)


def dense(w: Tensor, heads: int, gates: int) -> Tensor:
    """The weights of heads (G*H, P/heads) with the zeros between them, (G*H, P)."""
    blocks = w.unflatten(0, (gates, heads, -1)).movedim(1, -2)  # (G, H/heads, heads, P/heads)
    own = torch.eye(heads, dtype=torch.bool, device=w.device).view(1, heads, 1, heads, 1)
    spread = torch.where(own, blocks.unsqueeze(1), 0)  # (G, heads, H/heads, heads, P/heads)
    return spread.reshape(w.size(0), -1)


def coupled(w: Tensor, blocks: int = 4) -> Tensor:
    """Weights of an LSTM's gates with minus those of i in the place of f's: sigmoid(-z) is 1 - sigmoid(z).
    blocks: 4, or 3 where g has none."""
    i, _, *rest = w.chunk(blocks)
    return torch.cat([i, -i, *rest])


def step(
    card: Card,
    variant: Variant,
    gx: Tensor,
    state: State,
    own: Weights,
    keep: tuple[Tensor | None, Tensor | None],
    recurrent: Tensor | None,
) -> State:
    """One step.

    Args:
        gx: what ``inputs`` gives of it, (B, G*H). state: h (B, P), and c (B, H) where there is one.
        keep: of h (B, P) and of c (B, H), how much of its old value a unit keeps; None for nothing.
        recurrent: (B, P), what h is multiplied by before the recurrent product; None for nothing.
    """
    h, *c = state
    seen = h if recurrent is None else h * recurrent

    def recur(first: int, last: int, reset: Tensor | None = None) -> Tensor:
        fed = seen if reset is None else reset * seen
        gh = product(fed, own, variant, first, last, card.gates)
        if variant.norm:
            gh = norm(gh, own.norm_hh, None, variant)
        if own.bias_hh is None:
            return gh
        hidden = own.bias_hh.size(0) // card.gates
        return gh + own.bias_hh[first * hidden : last * hidden]

    new_h, *new_c = card.gates_of(variant, own, gx, recur, state)
    if own.weight_hr is not None:
        new_h = linear(new_h, own.weight_hr)
    new = _kept(keep[0], h, new_h)
    return (new, *(_kept(keep[1], old, n) for old, n in zip(c, new_c, strict=True)))


#: What a cell's gates ask for the recurrent part of: (first gate, the one after the last, reset or None).
Recur = Callable[..., Tensor]


def _kept(keep: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    """Zoneout: what a unit keeps of its old value, and the rest of the new one."""
    return new if keep is None else keep * old + (1 - keep) * new
