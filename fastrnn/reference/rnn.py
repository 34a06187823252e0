"""LSTM, GRU and RNN in plain torch: the loop over the steps of a layer. The steps are the cells' own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from .._cells import RNN, stages, widen
from .._cells.variant import parse, split

__all__ = ["GATES", "gradients", "gru_cell", "layer", "lstm_cell", "masked_layer", "rnn_cell"]

#: Number of gate blocks in the weights of each cell.
GATES = {name: card.gates for name, card in RNN.items()}


def _widen(*tensors: Tensor | None) -> list[Tensor | None]:
    return [widen(t) for t in tensors]


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step. x (B, I), h (B, P), c (B, H), w_ih (4H, I), w_hh (4H, P), biases (4H,), w_hr (P, H).

    Returns h (B, P) and c (B, H) in x's dtype.
    """
    dtype = x.dtype
    x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr = _widen(x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr)
    h, c = RNN["lstm"].step(linear(x, w_ih, b_ih), (h, c), w_hh, b_hh, w_hr)
    return h.to(dtype), c.to(dtype)


def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One GRU step. x (B, I), h (B, H), w_ih (3H, I), w_hh (3H, H), biases (3H,). Returns h (B, H)."""
    dtype = x.dtype
    x, h, w_ih, w_hh, b_ih, b_hh = _widen(x, h, w_ih, w_hh, b_ih, b_hh)
    (h,) = RNN["gru"].step(linear(x, w_ih, b_ih), (h,), w_hh, b_hh)
    return h.to(dtype)


def rnn_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One Elman step ("tanh" or "relu"). x (B, I), h (B, H), w_ih (H, I), w_hh (H, H). Returns h (B, H)."""
    dtype = x.dtype
    x, h, w_ih, w_hh, b_ih, b_hh = _widen(x, h, w_ih, w_hh, b_ih, b_hh)
    (h,) = RNN[f"rnn_{nonlinearity}"].step(linear(x, w_ih, b_ih), (h,), w_hh, b_hh)
    return h.to(dtype)


def layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    cell: str,
    bias: bool,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    save: str | None = None,
    keep_cells: bool = False,
) -> tuple[Tensor | None, ...]:
    """One layer over whole sequences, one or two directions.

    The rows of a batch may differ. In a packed one ``batch_sizes`` says how long they are. Of a padded one
    row b takes its steps t < lengths[b] alone: beyond them the output and the cell states are zero, and the
    state stays what it was. The reverse direction begins at a row's own last step. Where reset[t, b] is true,
    a new sequence begins at step t: neither direction's state passes between the steps t-1 and t. So the
    forward direction starts from zero there (at step 0 too, which drops h0), and the reverse one at t-1.

    Args:
        x: (T, B, I); with ``batch_sizes``, packed rows (N, I), N = sum(batch_sizes).
        h0: (D, B, P). c0: (D, B, H) for the LSTM, else None.
        weights: per direction w_ih (G*H, I), w_hh (G*H, P), then b_ih, b_hh (G*H,) if ``bias``, then
            w_hr (P, H) for an LSTM with projection; the directions one after the other. A variant has more,
            as ``_cells.variant`` says, and its masks at the end.
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu", and a variant of it as ``_cells.variant.spell`` says.
        batch_sizes: (T,) int64 on the CPU, positive and never increasing: rows still running at each step.
        lengths: (B,) integers from 0 to T, or None: all T. reset: (T, B) bool, or None: nowhere. Both of a
            padded batch.
        save: accepted and ignored; the fused layer takes it, and autograd decides here.
        keep_cells: whether there is a fourth result.

    Returns:
        y (T, B, D*P) or (N, D*P), h_n (D, B, P), c_n (D, B, H) or None, in x's dtype; with ``keep_cells``
        also the LSTM's c of every step, (D, N, H), N = T*B without batch_sizes, float32 for half types, or
        None. None of them aliases another or an input.
    """
    told = parse(cell)  # not taken apart: the compiler of torch 2.11 cannot, of a constant within vmap
    card, variant = told.card, told.variant
    dtype, directions, batch = x.dtype, h0.size(0), h0.size(1)
    x, h0, c0 = _widen(x, h0, c0)
    weights, masks = split(_widen(*weights), directions, cell, bias)
    running = cut = None
    if lengths is not None:
        running = torch.arange(x.size(0), device=x.device).unsqueeze(1) < lengths.to(x.device)
        # What is in the padding, NaN too, reaches no gradient.
        x = x.masked_fill(~running.unsqueeze(2), 0)
    if reset is not None:
        cut = reset.to(device=x.device, dtype=torch.bool)

    outputs, states, finals = [], [], []
    for d in range(directions):
        own = weights[d]
        state = (h0[d],) if c0 is None else (h0[d], c0[d])
        gx = stages.inputs(x, own, variant)
        kept = [_of_steps(mask, d, directions, batch_sizes) for mask in masks[:2]]
        recurrent = None if masks.recurrent_mask is None else masks.recurrent_mask[d]
        if batch_sizes is not None:
            gx = gx.split(batch_sizes.tolist())
        else:  # of a single step a program then needs one operation, and not two
            gx = gx.unbind(0) if x.size(0) != 1 else (gx[0],)
        steps = len(gx)
        hs, cs = [None] * steps, [None] * steps
        for t in reversed(range(steps)) if d else range(steps):
            # Rows of a packed batch that have ended, or in reverse have not begun, keep their state.
            rows = batch if batch_sizes is None else gx[t].size(0)
            start = old = state if rows == batch else tuple(s[:rows] for s in state)
            begins = _begins(cut, running, t, reverse=d == 1)
            if begins is not None:
                start = tuple(s.masked_fill(begins, 0) for s in old)
            if cell in RNN:
                new = card.step(gx[t], start, own.weight_hh, own.bias_hh, own.weight_hr)
            else:
                keep = tuple(None if k is None else k[t] for k in kept)
                drop = None if recurrent is None else recurrent[:rows]
                new = stages.step(card, variant, gx[t], start, own, keep, drop)
            shown = new
            if running is not None:
                row = running[t].unsqueeze(1)
                new = tuple(torch.where(row, n, s) for n, s in zip(shown, old, strict=True))
                shown = tuple(n.masked_fill(~row, 0) for n in shown)
            if rows != batch:
                new = tuple(torch.cat([n, s[rows:]]) for n, s in zip(new, state, strict=True))
            state = new
            hs[t], cs[t] = shown[0], shown[-1]
        outputs.append(torch.stack(hs) if batch_sizes is None else torch.cat(hs))
        if keep_cells and card.has_cell:
            states.append(torch.cat(cs))
        finals.append(state)

    y = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    h_n, *c_n = (torch.stack(s).to(dtype) for s in zip(*finals, strict=True))
    results = y.to(dtype), h_n, (c_n[0] if c_n else None)
    if not keep_cells:
        return results
    return *results, (torch.stack(states) if states else None)


def _of_steps(mask: Tensor | None, d: int, directions: int, batch_sizes: Tensor | None):
    """One direction's part of what zoneout keeps, step by step."""
    if mask is None:
        return None
    own = mask.chunk(directions, dim=-1)[d]
    return own.unbind(0) if batch_sizes is None else own.split(batch_sizes.tolist())


def _begins(cut: Tensor | None, running: Tensor | None, t: int, reverse: bool) -> Tensor | None:
    """(B, 1): the rows whose state does not reach step t from the step taken before it."""
    if cut is None:
        return None
    if not reverse:
        return cut[t].unsqueeze(1)
    if t + 1 == cut.size(0):
        return None
    # A row that begins at t, its last step, begins with its h0.
    begins = cut[t + 1] if running is None else cut[t + 1] & running[t + 1]
    return begins.unsqueeze(1)


def masked_layer(
    x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], **options
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """:func:`layer` with every step's c among its results."""
    return layer(x, h0, c0, weights, keep_cells=True, **options)


def gradients(
    grads: Sequence[Tensor | None],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    wanted: Sequence[bool],
    **options,
) -> list[Tensor | None]:
    """The gradients of :func:`layer` as functions that can be differentiated again, for one forward more.

    Args:
        grads: those of the layer's results, None where a result was not used.
        wanted: whether to give the gradient of x, h0, c0 and each of the weights.
        options: the layer's keyword arguments.

    Returns:
        For each of ``wanted`` the gradient, or None where it is not wanted or does not exist.
    """
    with torch.enable_grad():
        # Views stand in for the tensors: a weight in two places is to get two gradients, not their sum twice.
        x, h0, c0, *weights = leaves = [t if t is None else t.view_as(t) for t in (x, h0, c0, *weights)]
        results = layer(x, h0, c0, weights, **options)
        used = [(r, g) for r, g in zip(results, grads, strict=True) if r is not None and g is not None]
        chosen = [t for t, w in zip(leaves, wanted, strict=True) if w]
        found = iter(
            torch.autograd.grad(
                [r for r, _ in used], chosen, [g for _, g in used], create_graph=True, allow_unused=True
            )
        )
    return [next(found) if w else None for w in wanted]
