"""Variants of the recurrent cells as cases: their equations in float64, which an operator is held to.

For the operators of every device: tests/cells/test_variants.py, tests/cuda/test_stages_emulated.py.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


class Case(NamedTuple):
    cell: str
    options: tuple[str, ...]
    T: int = 5
    B: int = 4
    I: int = 3  # noqa: E741
    H: int = 9
    P: int = 0
    D: int = 1
    bias: bool = True
    heads: int = 1
    rows: str = ""  # "lengths", "reset", "packed"
    expectation: bool = False  # zoneout as in evaluation

    @property
    def name(self) -> str:
        return "+".join([self.cell, *self.options, *([f"heads={self.heads}"] * (self.heads > 1))])


EPS = 1e-3


class Problem(NamedTuple):
    x: torch.Tensor
    h0: torch.Tensor
    c0: torch.Tensor | None
    weights: list[torch.Tensor]
    masks: list[torch.Tensor]
    a_direction: int
    lengths: torch.Tensor | None
    reset: torch.Tensor | None
    batch_sizes: torch.Tensor | None


def problem(case: Case, dtype=torch.float64) -> Problem:
    generator = torch.Generator().manual_seed(5)

    def draw(*sizes):
        return (torch.rand(sizes, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)

    T, B, H, D, G = case.T, case.B, case.H, case.D, GATES[case.cell]
    out = case.P or H
    lengths = (
        torch.tensor([T, T - 1, 1, *([0] * (B - 3))])[:B] if case.rows in ("lengths", "packed") else None
    )
    if case.rows == "packed":
        lengths = lengths.clamp(min=1)
    weights: list[torch.Tensor] = []
    for _ in range(D):
        one = [draw(G * H, case.I), draw(G * H, out // case.heads)]
        one += [draw(G * H), draw(G * H)] * case.bias + [draw(case.P, H)] * bool(case.P)
        one += [draw(3 * H)] * ("peephole" in case.options)
        if any(o.startswith("norm") for o in case.options):
            one += [draw(G * H) + 1, draw(G * H) + 1]
            one += [draw(H) + 1, draw(H)] * (case.cell == "lstm")
        weights += one
    masks = []
    for option, width in (("zoneout_h", D * out), ("zoneout_c", D * H)):
        if option in case.options:
            if case.expectation:
                masks.append(torch.rand(1, 1, width, generator=generator).to(dtype).expand(T, B, width))
            else:
                masks.append((torch.rand(T, B, width, generator=generator) < 0.4).to(dtype))
    if "recurrent_mask" in case.options:
        masks.append((torch.rand(D, B, out, generator=generator) < 0.7).to(dtype) / 0.7)
    reset = torch.rand(T, B, generator=generator) < 0.3 if case.rows == "reset" else None
    batch_sizes = None
    if case.rows == "packed":
        batch_sizes = torch.tensor([int((lengths > t).sum()) for t in range(T)])
    return Problem(
        draw(T, B, case.I),
        draw(D, B, out),
        draw(D, B, H) if case.cell == "lstm" else None,
        weights,
        masks,
        len(weights) // D,
        lengths,
        reset,
        batch_sizes,
    )


def layer_norm(v):
    v = v - v.mean(1, keepdim=True)
    return v / (v.square().mean(1, keepdim=True) + EPS).sqrt()


def blocks(w, heads, H):
    """The whole matrix of a block-diagonal one."""
    if heads == 1:
        return w
    size = H // heads
    rows = torch.arange(w.size(0)) % H // size
    columns = torch.arange(H)
    full = w.repeat(1, heads)
    return torch.where(rows[:, None] == columns[None, :] // size, full, 0)


def expected(case: Case, p: Problem):
    """y (T,B,.), hn, cn, cells by torch's operations."""
    T, B, H, D, G = case.T, case.B, case.H, case.D, GATES[case.cell]
    opts = {o.partition("=")[0] for o in case.options}
    masks = list(p.masks)
    keep_h = masks.pop(0) if "zoneout_h" in opts else None
    keep_c = masks.pop(0) if "zoneout_c" in opts else None
    dropped = masks.pop(0) if "recurrent_mask" in opts else None
    out = case.P or H
    lengths = torch.full((B,), T) if p.lengths is None else p.lengths
    ys, hn, cn, kept = [], [], [], []
    for d in range(D):
        w = list(p.weights[d * p.a_direction : (d + 1) * p.a_direction])
        w_ih, w_hh = w.pop(0), blocks(w.pop(0), case.heads, H)
        b_ih, b_hh = (w.pop(0), w.pop(0)) if case.bias else (torch.zeros(G * H).to(p.x),) * 2
        w_hr = w.pop(0) if case.P else None
        peep = w.pop(0).chunk(3) if "peephole" in opts else None
        if "norm" in opts:
            gain_x, gain_h = w.pop(0), w.pop(0)
            if case.cell == "lstm":
                gain_c, bias_c = w.pop(0), w.pop(0)
        h, c = p.h0[d], p.c0[d] if p.c0 is not None else p.h0.new_zeros(B, H)
        y, cells = [None] * T, [None] * T
        for s in range(T):
            t = T - 1 - s if d else s
            runs = (t < lengths).unsqueeze(1)
            if p.reset is not None and t + d < T:
                cut = p.reset[t + d].unsqueeze(1)
                h, c = h.masked_fill(cut, 0), c.masked_fill(cut, 0)
            seen = h if dropped is None else h * dropped[d]
            gx, gh = p.x[t] @ w_ih.T, seen @ w_hh.T
            if "norm" in opts:
                gx, gh = layer_norm(gx) * gain_x, layer_norm(gh) * gain_h
            gx, gh = gx + b_ih, gh + b_hh
            new_c = c
            if case.cell == "lstm":
                i, f, g, o = (gx + gh).chunk(4, 1)
                if peep:
                    i, f = i + peep[0] * c, f + peep[1] * c
                i = i.sigmoid()
                f = 1 - i if "coupled" in opts else f.sigmoid()
                new_c = f * c + i * g.tanh()
                if peep:
                    o = o + peep[2] * new_c
                at = layer_norm(new_c) * gain_c + bias_c if "norm" in opts else new_c
                new_h = o.sigmoid() * at.tanh()
                if keep_c is not None:
                    k = keep_c[t, :, d * H : (d + 1) * H]
                    new_c = k * c + (1 - k) * new_c
            elif case.cell == "gru":
                (xr, xz, xn), (hr, hz, hnn) = gx.chunk(3, 1), gh.chunk(3, 1)
                r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
                if "reset_before" in opts:
                    hnn = (r * seen) @ w_hh[2 * H :].T + b_hh[2 * H :]
                    n = (xn + hnn).tanh()
                else:
                    n = (xn + r * hnn).tanh()
                new_h = (1 - z) * n + z * h
            else:
                new_h = (gx + gh).tanh() if case.cell == "rnn_tanh" else (gx + gh).relu()
            if w_hr is not None:
                new_h = new_h @ w_hr.T
            if keep_h is not None:
                k = keep_h[t, :, d * out : (d + 1) * out]
                new_h = k * h + (1 - k) * new_h
            h, c = torch.where(runs, new_h, h), torch.where(runs, new_c, c)
            y[t], cells[t] = torch.where(runs, new_h, 0), torch.where(runs, new_c, 0)
        ys.append(torch.stack(y))
        hn.append(h)
        cn.append(c)
        kept.append(torch.stack(cells))
    results = [torch.cat(ys, 2), torch.stack(hn)]
    return results + ([torch.stack(cn), torch.stack(kept)] if case.cell == "lstm" else [])


def packed(tensor, p):
    if p.batch_sizes is None or tensor is None:
        return tensor
    return torch.cat([tensor[t, :n] for t, n in enumerate(p.batch_sizes.tolist())])


def as_stored(p: Problem, dtype: torch.dtype) -> Problem:
    """The problem with every number as the dtype holds it: what kernel and definition both are given."""

    def held(t):
        return t.to(dtype).double() if torch.is_tensor(t) and t.is_floating_point() else t

    return Problem(*([held(t) for t in v] if isinstance(v, list) else held(v) for v in p))


def check(namespace, case: Case, save: int = 1, dtype=torch.float64, tolerance=1e-9):
    p = as_stored(problem(case), dtype)
    leaves = [p.x, p.h0, *([p.c0] if p.c0 is not None else []), *p.weights]
    for leaf in leaves:
        leaf.requires_grad_()
    wanted = expected(case, p)
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.rand(w.shape, generator=generator, dtype=torch.float64) * 2 - 1 for w in wanted]
    cotangents = [c.to(dtype).double() for c in cotangents]
    if p.lengths is not None:
        beyond = torch.arange(case.T)[:, None] >= p.lengths
        cotangents[0].masked_fill_(beyond[..., None], 0)
        if case.cell == "lstm":
            cotangents[3].masked_fill_(beyond[None, ..., None], 0)
    gradients = torch.autograd.grad(wanted, leaves, cotangents, allow_unused=True)
    cast = (lambda t: t) if dtype is torch.float64 else (lambda t: None if t is None else t.to(dtype))
    with torch.no_grad():
        x, h0 = cast(packed(p.x, p)), cast(p.h0)
        c0 = cast(p.c0)
        rows_of = [o for o in case.options if o.startswith("zoneout")]
        masks = [packed(m, p) if i < len(rows_of) else m for i, m in enumerate(p.masks)]
        weights = [cast(t) for t in [*p.weights, *masks]]
        lengths = p.lengths if case.rows == "lengths" else None
        rest = (p.batch_sizes, lengths, p.reset)
        y, hn, cn, gates, cells = namespace.rnn_forward(x, h0, c0, weights, *rest, case.name, case.bias, save)
        found = [y, hn] + ([cn, cells] if case.cell == "lstm" else [])
        if case.cell == "lstm":
            rows = [w if case.rows != "packed" else packed(w, p) for w in wanted[3]]
            wanted[3] = torch.stack([r.reshape(-1, case.H) for r in rows])
            rows = [c if case.rows != "packed" else packed(c, p) for c in cotangents[3]]
            cotangents[3] = torch.stack([r.reshape(-1, case.H) for r in rows])
        wanted[0], cotangents[0] = packed(wanted[0], p), packed(cotangents[0], p)
        for name, got, want in zip(("y", "hn", "cn", "cells"), found, wanted, strict=False):
            close(got, want, tolerance, f"{case} {name}")
        grads = [cast(c) for c in cotangents[:2]] + (
            [cast(cotangents[2]), cotangents[3].to(cells.dtype)] if case.cell == "lstm" else [None, None]
        )
        gx, gh0, gc0, gw = namespace.rnn_backward(
            *grads, x, h0, c0, weights, *rest, y, gates, cells, case.name, case.bias, 15
        )
        found = [gx, gh0, *([gc0] if p.c0 is not None else []), *gw]
        assert all(g.numel() == 0 for g in gw[len(p.weights) :])
        names = [
            "x",
            "h0",
            *(["c0"] if p.c0 is not None else []),
            *(f"weight {i}" for i in range(len(p.weights))),
        ]
        for name, got, want, leaf in zip(names, found, gradients, leaves, strict=False):
            want = torch.zeros_like(leaf) if want is None else want
            close(got, packed(want, p) if name == "x" else want, tolerance, f"{case} grad {name}")


def close(got, want, tolerance, what):
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(
        got.double(), want.double(), rtol=0, atol=tolerance * scale, msg=lambda m: f"{what}: {m}"
    )


LSTM = [
    ("peephole",),
    ("coupled",),
    ("coupled", "peephole"),
    ("norm=0.001",),
    ("zoneout_h",),
    ("zoneout_c",),
    ("recurrent_mask",),
    ("peephole", "coupled", "norm=0.001", "zoneout_h", "zoneout_c", "recurrent_mask"),
]
GRU = [
    ("norm=0.001",),
    ("zoneout_h",),
    ("recurrent_mask",),
    ("reset_before",),
    ("reset_before", "zoneout_h", "recurrent_mask"),
    ("norm=0.001", "zoneout_h", "recurrent_mask"),
]
RNN = [("norm=0.001",), ("zoneout_h", "recurrent_mask"), ("norm=0.001", "zoneout_h", "recurrent_mask")]
OPTIONS = [("lstm", o) for o in LSTM] + [("gru", o) for o in GRU]
OPTIONS += [(c, o) for c in ("rnn_tanh", "rnn_relu") for o in RNN]


def cases():
    for cell, options in OPTIONS:
        yield Case(cell, options)
        yield Case(cell, options, D=2, H=17, rows="lengths")
        yield Case(cell, options, D=2, rows="reset", expectation=True)
        yield Case(cell, options, D=2, rows="packed", bias=False, H=33, B=7)
        yield Case(cell, options, T=1, B=1, H=5)
    for cell, heads, H in itertools.product(("lstm", "gru", "rnn_tanh"), (2, 3), (6, 18, 96)):
        yield Case(cell, (), H=H, heads=heads, D=2)
    yield Case("gru", ("reset_before", "recurrent_mask", "zoneout_h"), H=12, heads=3, D=2)
    yield Case("lstm", LSTM[-1], H=20, heads=2, D=2)
    for options in (("zoneout_h", "zoneout_c", "recurrent_mask"), LSTM[-1]):
        yield Case("lstm", options, H=9, P=5, D=2, rows="lengths")
        yield Case("lstm", options, H=19, P=18, rows="reset")
