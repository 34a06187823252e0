"""What run_faults runs of the SRU's scan."""

from __future__ import annotations

from dataclasses import replace

import torch
from sru_cases import Case, expected, fused, problem, worst


def check_cases() -> list[Case]:
    """More steps than are on their way at once, pairs and single values, pads, rows that begin anew, every
    step's state, packed rows."""
    plain = Case(L=27, B=3, O=6, D=2, pad=True, drop=True, v=True)
    pairs = replace(plain, B=2, O=28, dtype=torch.bfloat16)
    packed = replace(plain, pad=False, sizes=(5, *[4] * 24, 2, 1))
    return [
        plain,
        replace(plain, dtype=torch.float32, skip="u", tanh=True),
        pairs,
        replace(pairs, skip="u", drop=False, v=False),
        replace(plain, D=1, O=7, B=2, dtype=torch.float16, skip="none"),
        replace(plain, reset=True, states=True),
        replace(pairs, reset=True, states=True),
        packed,
        replace(packed, dtype=torch.bfloat16, O=10, skip="u"),
        Case(L=2, B=9, O=40, dtype=torch.float32),
    ]


def worst_of(ops, case: Case) -> tuple[float, str]:
    p = problem(case)
    return worst(case, fused(ops, case, p.map(ops.guarded)), expected(case, p))
