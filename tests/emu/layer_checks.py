"""What run_faults runs of the layer ops."""

from __future__ import annotations

from dataclasses import replace

import torch
from layer_cases import PACKED, Case, expected, fused, problem, worst


def check_cases() -> list[Case]:
    """Few, but between them every kernel and every branch."""
    cases = []
    for cell in ("lstm", "gru", "rnn_relu"):
        cases += [
            Case(cell, D=2, sizes=PACKED, save="recompute"),
            Case(cell, D=2),
            Case(cell, D=2, T=2, B=2, H=130, dtype=torch.float32, save="recompute"),
        ]
        cases.append(Case(cell, B=5, D=2, lengths=(2, 0, 4), reset="some"))
    return [*cases, Case("lstm", P=3, D=2, sizes=PACKED), replace(cases[0], dtype=torch.bfloat16)]


def worst_of(ops, case: Case) -> tuple[float, str]:
    p = problem(case)
    return worst(case, fused(ops, case, p.map(ops.guarded)), expected(case, p))
