"""The recurrence of SRU and SRU++ in plain torch: the definition, the oracle and the fallback.

What the fused scan computes is defined here; ``fastrnn.reference`` exports it. The equations are those of
Lei et al., "Simple Recurrent Units for Highly Parallelizable Recurrence" (2018), with the options that the
``sru`` package added later: dropout masks, pads, tanh, and weights v that differ from step to step.

Shapes: L steps, B rows, H hidden units, D directions, O = D*H with the direction outermost, K = 3 or 4.
bfloat16 and float16 are computed in float32 and rounded once at the end, as the kernels do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._cells import widen
from .._cells.sru import step

__all__ = ["sru_scan", "sru_scan_gradients"]


def sru_scan(
    u: Tensor,
    x: Tensor | None,
    weight_c: Tensor,
    bias: Tensor,
    c0: Tensor,
    *,
    v: Tensor | None = None,
    mask_pad: Tensor | None = None,
    drop_mask: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    use_tanh: bool = False,
    scale: float = 1.0,
    bidirectional: bool = False,
    keep_cells: bool = False,
) -> tuple[Tensor, ...]:
    r"""The elementwise recurrence of one SRU layer over whole sequences, one or two directions.

    .. math::
        f_t &= \sigma(u_{1,t} + (w_f + v_{f,t}) \odot c_{t-1} + b_f) \\
        r_t &= \sigma(u_{2,t} + (w_r + v_{r,t}) \odot c_{t-1} + b_r) \\
        c_t &= u_{0,t} + (c_{t-1} - u_{0,t}) \odot f_t \\
        h_t &= X_t + (g(c_t) - X_t) \odot m \odot r_t

    where X is ``scale * x`` for K = 3, the fourth block of u for K = 4, and 0 without x; g is the identity or
    tanh, m the dropout mask. Both gates read the state before the step. The second direction starts at the
    end.

    Args:
        u: (L, B, K, O), blocks candidate, forget gate, reset gate and, for K = 4, skip; packed (N, K, O).
        x: (L, B, O) or packed (N, O), the highway's input for K = 3; None for no skip term, and for K = 4.
        weight_c, bias: (2, O), the row of the forget gate and that of the reset gate.
        c0: (B, O).
        v: (L, B, 2, O) or packed (N, 2, O), added to weight_c at each step.
        mask_pad: (L, B) bool, True where a step is padding: c passes unchanged, h is 0. Not for packed rows.
        drop_mask: (B, O), the same at every step; the zeros and 1/(1-p) of dropout.
        batch_sizes: (L,) int64 on the CPU, rows still running at each step, as in a PackedSequence.
        lengths: (B,) integers from 0 to L: row b's steps from lengths[b] on are pads. Not for packed rows.
        reset: (L, B) bool, True where a new sequence begins: neither direction's state passes between the
            steps t-1 and t. A pad begins none. Not for packed rows.
        keep_cells: whether there is a third result.

    Returns:
        h (L, B, O) or (N, O); c (B, O), the state after the last step of each direction. In u's dtype. With
        ``keep_cells`` also c of every step, (N, O), N = L*B without batch_sizes, float32 for half types; of a
        pad it is what passes through it.
    """
    dtype, directions = u.dtype, 2 if bidirectional else 1
    u, x, weight_c, bias, c0, v, drop_mask = map(widen, (u, x, weight_c, bias, c0, v, drop_mask))
    if lengths is not None:
        beyond = torch.arange(u.size(0), device=u.device).unsqueeze(1) >= lengths.to(u.device)
        mask_pad = beyond if mask_pad is None else mask_pad | beyond
    if mask_pad is not None:  # a gradient of zero times what a pad may hold is not always zero
        u = u.masked_fill(mask_pad[..., None, None], 0)
        x = None if x is None else x.masked_fill(mask_pad.unsqueeze(-1), 0)
        v = None if v is None else v.masked_fill(mask_pad[..., None, None], 0)
    skip = None if x is None else x * scale
    if u.size(-2) == 4:
        skip = u[..., 3, :]
    weight = weight_c if v is None else weight_c + v

    def steps(t: Tensor) -> Sequence[Tensor]:
        return t.unbind(0) if batch_sizes is None else t.split(batch_sizes.tolist())

    outputs, finals, states = [], [], []
    for d, c in enumerate(c0.chunk(directions, dim=-1)):
        # This direction's part of everything, cut into steps.
        candidates, forgets_resets = (
            steps(t.chunk(directions, dim=-1)[d]) for t in (u[..., 0, :], u[..., 1:3, :] + bias)
        )
        own = weight.chunk(directions, dim=-1)[d]
        weights = [own] * len(candidates) if v is None else steps(own)
        skips = [None] * len(candidates) if skip is None else steps(skip.chunk(directions, dim=-1)[d])
        pads = [None] * len(candidates) if mask_pad is None else mask_pad.unsqueeze(-1).unbind(0)
        drop = None if drop_mask is None else drop_mask.chunk(directions, dim=-1)[d]
        begins = None if reset is None else cuts(reset, mask_pad, reverse=d == 1).unsqueeze(-1)

        hs, cs = [], []
        order = range(len(candidates))
        for t in reversed(order) if d else order:
            rows = candidates[t].size(0)
            h, new = step(
                candidates[t],
                forgets_resets[t],
                weights[t],
                skips[t],
                None if drop is None else drop[:rows],
                pads[t],
                c[:rows] if begins is None else c.masked_fill(begins[t], 0),
                use_tanh,
            )
            # Rows of a packed batch that have ended, or in reverse have not begun, keep their state.
            c = new if rows == c.size(0) else torch.cat([new, c[rows:]])
            hs.append(h)
            cs.append(new)
        hs, cs = (hs[::-1], cs[::-1]) if d else (hs, cs)
        if not hs:
            outputs.append(u[..., 0, :].chunk(directions, dim=-1)[d])
            states.append(c[:0])
        else:
            outputs.append(torch.stack(hs) if batch_sizes is None else torch.cat(hs))
            states.append(torch.cat(cs))
        finals.append(c)
    h, c = torch.cat(outputs, dim=-1), torch.cat(finals, dim=-1)
    if keep_cells:
        return h.to(dtype), c.to(dtype), torch.cat(states, dim=-1)
    return h.to(dtype), c.to(dtype)


def cuts(reset: Tensor, mask_pad: Tensor | None, reverse: bool) -> Tensor:
    """(L, B) bool: steps at which a direction takes 0 in place of the state that it comes with."""
    cut = reset.bool() if mask_pad is None else reset.bool() & ~mask_pad
    if reverse:  # it comes from the later step
        # Not of cut[1:], which a program of torch.export wants to be more than one step.
        return torch.cat([cut, torch.zeros_like(cut[:1])])[1:]
    return cut


def sru_scan_gradients(
    grads: Sequence[Tensor | None],
    u: Tensor,
    x: Tensor | None,
    weight_c: Tensor,
    bias: Tensor,
    c0: Tensor,
    v: Tensor | None = None,
    *,
    wanted: Sequence[bool],
    **options,
) -> list[Tensor | None]:
    """The gradients of :func:`sru_scan` as functions that can be differentiated again.

    Args:
        grads: those of the scan's results, None where one was not used.
        wanted: whether to give the gradient of u, x, weight_c, bias, c0 and v.
        options: the remaining arguments of :func:`sru_scan`.

    Returns:
        For each of ``wanted`` the gradient, or None where it is not wanted or does not exist.
    """
    with torch.enable_grad():
        # Views stand in for the tensors: one in two places is to get two gradients, not their sum twice.
        leaves = [t if t is None else t.view_as(t) for t in (u, x, weight_c, bias, c0, v)]
        results = sru_scan(*leaves[:5], v=leaves[5], **options)
        used = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
        chosen = [t for t, w in zip(leaves, wanted, strict=True) if w and t is not None]
        found = iter(
            torch.autograd.grad(
                [r for r, _ in used], chosen, [g for _, g in used], create_graph=True, allow_unused=True
            )
        )
    return [next(found) if w and t is not None else None for w, t in zip(wanted, leaves, strict=True)]
