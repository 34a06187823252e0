"""The layers without torch.nn's like in a check of ``verify``: linear_scan, IndRNN, MinGRU, MinLSTM, SLSTM.

What they are compared with is their definition of ``fastrnn.reference``, layer by layer and direction by
direction. They have no packed sequences: where others are given one, they are given the rows' lengths.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import functional, modules, reference
from .._cells import minimal
from ._tolerances import Check

#: Each with its class and options; linear_scan is a function.
CELLS: dict[str, tuple[str, dict]] = {
    "linear_scan": ("", {}),
    "indrnn": ("IndRNN", {"nonlinearity": "tanh"}),
    "mingru": ("MinGRU", {"log_space": True}),
    "minlstm": ("MinLSTM", {}),
    "slstm": ("SLSTM", {}),
}


def layer(
    cell: str, inputs: int, hidden: int, num_layers: int = 1, directions: int = 1, device: str = "meta"
) -> nn.Module:
    """The module of one of these cells, by default without data."""
    name, options = CELLS[cell]
    if name == "SLSTM":
        options = {"num_heads": next(n for n in (4, 3, 1) if hidden % n == 0)}
    more = {"bidirectional": directions == 2, "device": device}
    return getattr(modules, name)(inputs, hidden, num_layers, **more, **options)


def numbers(
    check: Check, size: tuple[int, int, int, int, int], draw: Callable[..., Tensor], scale: float
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """x, states, parameters and cotangents. draw(*shape, scale=1.0)."""
    T, B, I, H, num_layers = size  # noqa: E741
    D = check.directions
    if check.cell == "linear_scan":  # x is b; of the factors few are above 1, or errors would be
        a = draw(T, B, D * H, scale=0.5)
        return draw(T, B, D * H, scale=scale), [draw(B, D * H)], [a], [draw(T, B, D * H)]
    module = layer(check.cell, I, H, num_layers, D)
    params = [
        draw(
            *p.shape,
            scale=0.1 if p.dim() == 1 and "bias" in name else (p.shape[-1] if p.dim() > 1 else 4) ** -0.5,
        )
        for name, p in module.named_parameters()
    ]
    states = [draw(num_layers * D, B, H, scale=0.5) for _ in range(module._states)]
    if len(states) > 1:  # c and n as some steps leave them
        states[2] = states[2].abs() + 0.5
    return draw(T, B, I, scale=scale), states, params, [draw(T, B, D * H), *(draw(*s.shape) for s in states)]


def run(
    check: Check,
    num_layers: int,
    backend: str,
    batch_sizes: Tensor | None,
    x: Tensor,
    hx: list[Tensor],
    params: list[Tensor],
):
    """Outputs and last states: of the layer, or with backend "reference" of its definition."""
    lengths = None
    if batch_sizes is not None:
        lengths = (batch_sizes.unsqueeze(1) > torch.arange(x.size(1))).sum(0)
    if check.cell == "linear_scan":
        scan = reference.linear_scan if backend == "reference" else functional.linear_scan
        pieces = zip(*(t.chunk(check.directions, -1) for t in (params[0], x, hx[0])), strict=True)
        return torch.cat(
            [scan(a, b, h0, reverse=bool(d), lengths=lengths) for d, (a, b, h0) in enumerate(pieces)], -1
        )
    module = layer(check.cell, x.size(-1), hx[0].size(-1), num_layers, check.directions)
    named = dict(zip((name for name, _ in module.named_parameters()), params, strict=True))
    if backend == "reference":
        return defined(check.cell, module, named, x, hx, lengths)
    state = tuple(hx) if len(hx) > 1 else hx[0]
    return torch.func.functional_call(module, named, (x, state), {"lengths": lengths})


def defined(
    cell: str,
    module: nn.Module,
    named: dict[str, Tensor],
    x: Tensor,
    hx: list[Tensor],
    lengths: Tensor | None = None,
) -> tuple:
    """What a layer of these parameters computes, by the definition of its recurrence."""
    finals: list[tuple[Tensor, ...]] = []
    directions = 2 if module.bidirectional else 1
    outputs: list[Tensor] = []
    for number, (suffix, _) in enumerate(module._directions()):
        if number and number % directions == 0:
            x, outputs = torch.cat(outputs, -1), []
        roles = ("weight_ih", "bias_ih", "weight_hh")
        w = {role: named[role + suffix] for role in roles if role + suffix in named}
        rows = {"lengths": lengths, "reverse": suffix.endswith("_reverse")}
        y, *last = _direction(cell, w, x, [s[number] for s in hx], rows)
        outputs.append(y)
        finals.append(tuple(last))
    return torch.cat(outputs, -1), *(torch.stack(s) for s in zip(*finals, strict=True))


def _direction(cell: str, w: dict[str, Tensor], x, states, rows: dict) -> tuple[Tensor, ...]:
    gates = nn.functional.linear(x, w["weight_ih"], w["bias_ih"])
    if len(states) > 1:
        y, last = reference.slstm(gates, w["weight_hh"], tuple(states), **rows)
        return y, *last
    if "weight_hh" in w:
        return reference.indrnn(gates, w["weight_hh"], states[0], **rows)
    a, b = getattr(minimal, cell)(gates, CELLS[cell][1].get("log_space", False))
    y = reference.linear_scan(a, b, states[0], **rows)
    if rows["reverse"]:
        return y, y[0]
    if rows["lengths"] is None:
        return y, y[-1]
    return y, y[rows["lengths"] - 1, torch.arange(y.size(1))]
