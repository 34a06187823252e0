"""LSTM, GRU and RNN in plain torch: a step of each, and the loop over a layer. See the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from .._cells import RNN

__all__ = ["GATES", "gradients", "gru_cell", "layer", "lstm_cell", "rnn_cell"]

#: Number of gate blocks in the weights of each cell.
GATES = {name: card.gates for name, card in RNN.items()}

_HALF = (torch.bfloat16, torch.float16)
_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


# One step, given the input's part of the gates: gx = W_ih x + b_ih, (B, G*H).


def _lstm_step(gx, h, c, w_hh, b_hh=None, w_hr=None):
    i, f, g, o = (gx + linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else linear(h, w_hr)), c


def _gru_step(gx, h, w_hh, b_hh=None):
    x_r, x_z, x_n = gx.chunk(3, dim=-1)
    h_r, h_z, h_n = linear(h, w_hh, b_hh).chunk(3, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h


def _rnn_step(gx, h, w_hh, b_hh, activation):
    return activation(gx + linear(h, w_hh, b_hh))


def _widen(*tensors: Tensor | None) -> list[Tensor | None]:
    """Half types as float32, everything else as it is."""
    return [t.float() if t is not None and t.dtype in _HALF else t for t in tensors]


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
    h, c = _lstm_step(linear(x, w_ih, b_ih), h, c, w_hh, b_hh, w_hr)
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
    return _gru_step(linear(x, w_ih, b_ih), h, w_hh, b_hh).to(dtype)


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
    return _rnn_step(linear(x, w_ih, b_ih), h, w_hh, b_hh, _ACTIVATIONS[nonlinearity]).to(dtype)


# A step is a function (gx, state) -> state, where state is (h,) or (h, c).
_State = tuple[Tensor, ...]
_Step = Callable[[Tensor, _State], _State]


def _make_step(cell: str, w_hh: Tensor, b_hh: Tensor | None, w_hr: Tensor | None) -> _Step:
    if cell == "lstm":
        return lambda gx, s: _lstm_step(gx, s[0], s[1], w_hh, b_hh, w_hr)
    if cell == "gru":
        return lambda gx, s: (_gru_step(gx, s[0], w_hh, b_hh),)
    activation = _ACTIVATIONS[cell.removeprefix("rnn_")]
    return lambda gx, s: (_rnn_step(gx, s[0], w_hh, b_hh, activation),)


def _scan(step: _Step, gates: Sequence[Tensor], state: _State, reverse: bool) -> tuple[list[Tensor], _State]:
    """Run the steps of equally long sequences. Returns each step's h, in time order, and the last state."""
    outputs = []
    for gx in reversed(gates) if reverse else gates:
        state = step(gx, state)
        outputs.append(state[0])
    return (outputs[::-1] if reverse else outputs), state


def _scan_packed(step: _Step, gates: Sequence[Tensor], state: _State) -> tuple[list[Tensor], _State]:
    """Forward direction of packed sequences: the batch shrinks, and rows that end leave with their state."""
    outputs, ended = [], []
    for gx in gates:
        rows = gx.size(0)
        if rows < state[0].size(0):
            ended.append([s[rows:] for s in state])
            state = tuple(s[:rows] for s in state)
        state = step(gx, state)
        outputs.append(state[0])
    ended.append(list(state))
    # The shortest sequences are the last rows and ended first.
    return outputs, tuple(torch.cat(parts) for parts in zip(*reversed(ended), strict=True))


def _scan_packed_reverse(
    step: _Step, gates: Sequence[Tensor], initial: _State
) -> tuple[list[Tensor], _State]:
    """Reverse direction of packed sequences: the batch grows, and a row starts at its own last step."""
    outputs = []
    state = tuple(s[:0] for s in initial)
    for gx in reversed(gates):
        rows, running = gx.size(0), state[0].size(0)
        if rows > running:
            state = tuple(torch.cat([s, s0[running:rows]]) for s, s0 in zip(state, initial, strict=True))
        state = step(gx, state)
        outputs.append(state[0])
    return outputs[::-1], state


def layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    cell: str,
    bias: bool,
    batch_sizes: Tensor | None = None,
    save: str | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer over whole sequences, one or two directions.

    Args:
        x: (T, B, I); with ``batch_sizes``, packed rows (N, I), N = sum(batch_sizes).
        h0: (D, B, P). c0: (D, B, H) for the LSTM, else None.
        weights: per direction w_ih (G*H, I), w_hh (G*H, P), then b_ih, b_hh (G*H,) if ``bias``, then
            w_hr (P, H) for an LSTM with projection; the directions one after the other.
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        batch_sizes: (T,) int64 on the CPU, positive and never increasing: rows still running at each step.
        save: accepted and ignored; the fused layer takes it, and autograd decides here.

    Returns:
        y (T, B, D*P) or (N, D*P), h_n (D, B, P), c_n (D, B, H) or None, in x's dtype. None of them aliases
        another or an input.
    """
    dtype, directions = x.dtype, h0.size(0)
    x, h0, c0 = _widen(x, h0, c0)
    weights = _widen(*weights)
    per_direction = len(weights) // directions
    sizes = None if batch_sizes is None else batch_sizes.tolist()

    outputs, finals = [], []
    for d in range(directions):
        w_ih, w_hh, *rest = weights[d * per_direction : (d + 1) * per_direction]
        b_ih, b_hh = rest[:2] if bias else (None, None)
        w_hr = rest[-1] if len(rest) in (1, 3) else None
        step = _make_step(cell, w_hh, b_hh, w_hr)
        state = (h0[d],) if c0 is None else (h0[d], c0[d])
        gx = linear(x, w_ih, b_ih)
        if sizes is None:
            hs, state = _scan(step, gx.unbind(0), state, reverse=d == 1)
            outputs.append(torch.stack(hs))
        else:
            scan = _scan_packed if d == 0 else _scan_packed_reverse
            hs, state = scan(step, gx.split(sizes), state)
            outputs.append(torch.cat(hs))
        finals.append(state)

    y = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    h_n, *c_n = (torch.stack(s).to(dtype) for s in zip(*finals, strict=True))
    return y.to(dtype), h_n, (c_n[0] if c_n else None)


def gradients(
    grads: Sequence[Tensor | None],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    wanted: Sequence[bool],
    function: Callable | None = None,
    **options,
) -> list[Tensor | None]:
    """The gradients of a layer as functions that can be differentiated again, for one forward more.

    Args:
        grads: those of the function's results, None where a result was not used.
        wanted: whether to give the gradient of x, h0, c0 and each of the weights.
        function: :func:`layer` by default, or another that begins with the same arguments.
        options: its keyword arguments.

    Returns:
        For each of ``wanted`` the gradient, or None where it is not wanted or does not exist.
    """
    with torch.enable_grad():
        # Views stand in for the tensors: a weight in two places is to get two gradients, not their sum twice.
        x, h0, c0, *weights = leaves = [t if t is None else t.view_as(t) for t in (x, h0, c0, *weights)]
        results = (function or layer)(x, h0, c0, weights, **options)
        used = [(r, g) for r, g in zip(results, grads, strict=True) if r is not None and g is not None]
        chosen = [t for t, w in zip(leaves, wanted, strict=True) if w]
        found = iter(
            torch.autograd.grad(
                [r for r, _ in used], chosen, [g for _, g in used], create_graph=True, allow_unused=True
            )
        )
    return [next(found) if w else None for w in wanted]
