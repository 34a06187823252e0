"""The stepwise loops over the kernels of emu_stages.cu, against autograd: python -m emu.stages_checks LIB.

One line of JSON: the largest error of each case beside the tensor's largest value.
"""

from __future__ import annotations

import json
import sys

import torch
from layer_cases import Case, fused, names, problem

from .build import NAMESPACE


def share(t: int, d: int, rows: torch.Tensor, units: int, salt: int) -> torch.Tensor:
    """share_at() of stages_policies.h, for every row and unit of a step."""
    row, unit = torch.meshgrid(rows, torch.arange(units), indexing="ij")
    return 0.05 + 0.1 * ((2 * t + 3 * row + 5 * unit + d + salt) % 8).double()


def expected(case: Case, p) -> list[torch.Tensor]:
    """Outputs and every gradient of the variants, by torch's operations."""
    leaves = [t.detach().requires_grad_() for t in [p.x, p.h0, *([] if p.c0 is None else [p.c0]), *p.weights]]
    x, h0, *rest = leaves
    c0 = rest.pop(0) if case.cell == "lstm" else torch.zeros_like(h0)
    T, B = case.T, case.B
    per = len(rest) // case.D
    lengths = torch.full((B,), T) if p.lengths is None else p.lengths
    ys, hn, cn = [], [], []
    for d in range(case.D):
        w_ih, w_hh, b_ih, b_hh, *w_hr = rest[d * per : (d + 1) * per]
        h, c, y = h0[d], c0[d], [None] * T
        for s in range(T):
            t = T - 1 - s if d else s
            runs = (t < lengths).unsqueeze(1)
            if p.reset is not None and t + d < T:
                cut = (p.reset[t + d] & (t + d < lengths)).unsqueeze(1)
                h, c = h.masked_fill(cut, 0), c.masked_fill(cut, 0)
            gx = x[t].masked_fill(~runs, 0) @ w_ih.T + b_ih
            rec = h @ w_hh.T + b_hh
            if case.cell == "lstm":
                i, f, g, o = (gx + rec).chunk(4, 1)
                new_c = (f + 0.3 * c).sigmoid() * c + i.sigmoid() * g.tanh()
                new_h = o.sigmoid() * new_c.tanh()
                new_h = new_h @ w_hr[0].T if w_hr else new_h
            else:
                (r, z, n), (rr, rz, rn) = gx.chunk(3, 1), rec.chunk(3, 1)
                n = torch.tanh(n + (r + rr).sigmoid() * rn)
                new_h = n + (z + rz).sigmoid() * (h - n)
                new_h = new_h + share(t, d, torch.arange(B) + t * B, case.H, 2) * (h - new_h)
                new_c = c
            h, c = torch.where(runs, new_h, h), torch.where(runs, new_c, c)
            y[t] = torch.where(runs, new_h, 0)
        ys.append(torch.stack(y))
        hn.append(h)
        cn.append(c)
    outputs = [torch.cat(ys, 2), torch.stack(hn)] + ([torch.stack(cn)] if case.cell == "lstm" else [])
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, leaves, p.cotangents)]


def cases() -> list[Case]:
    found = []
    for cell in ("lstm", "gru"):
        found += [Case(cell, T=5, tier="stepwise"), Case(cell, T=5, D=2, tier="stepwise")]
        found.append(Case(cell, T=5, D=2, reset="some", tier="stepwise"))
        found.append(Case(cell, T=5, B=4, D=2, lengths=(2, 0, 5), reset="some", tier="stepwise"))
    return [*found, Case("lstm", T=5, P=3, D=2, tier="stepwise")]


def main() -> None:
    torch.ops.load_library(sys.argv[1])
    ops = getattr(torch.ops, NAMESPACE)
    errors = {}
    for case in cases():
        p = problem(case)
        p.grad_cells = None
        p.cotangents[0].masked_fill_(p.padding.unsqueeze(-1), 0)
        got, want = fused(ops, case, p), expected(case, p)
        errors[str(case)] = {
            name: float((g - w).abs().max() / w.abs().max().clamp(min=1))
            for name, g, w in zip(names(case), got, want, strict=True)
        }
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
