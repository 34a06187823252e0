"""What run_faults runs of the persistent kernels: under the race check, so few and small."""

from __future__ import annotations

from persistent_cases import CELLS, Case, expected, fused, problem, worst


def check_cases() -> list[Case]:
    """Every cell and tier, two directions, rows that end and begin, resets, several tiles."""
    cases = []
    # A padded tile of units, so backward a CTA of fewer; CTAs with tiles that meet no barrier of theirs; and
    # weights in shared memory.
    cases.append(Case("lstm", "float16", "cluster", T=4, B=3, H=70, D=1))
    cases.append(Case("rnn_tanh", "bfloat16", "cluster", T=4, B=2, H=200, D=1))
    cases.append(Case("lstm", "tf32", "cluster", T=3, B=2, H=166, D=1))
    # Two tiles of rows for the same weights.
    cases.append(Case("gru", "bfloat16", "cluster", T=3, B=9, H=40, D=1, sms=4))
    for tier in ("one CTA", "cluster", "grid"):  # the grid's take longest
        for i, cell in enumerate(CELLS):
            precision = ("bfloat16", "float16", "tf32", "float32" if tier != "cluster" else "bfloat16")[i]
            cases.append(Case(cell, precision, tier, H=33 if i % 2 else 18, sizes=(9, 9, 4, 2)))
            cases.append(Case(cell, precision, tier, T=4, B=4, H=9, lengths=(4, 1, 3), resets="some"))
    # Whole tiles of one CTA, with rows missing; and what is no such layer but for its units.
    for i, cell in enumerate(CELLS):
        precision = ("bfloat16", "float16", "tf32", "float32")[i]
        cases.append(Case(cell, precision, "one CTA", T=3, B=9, H=32))
        cases.append(Case(cell, precision, "one CTA", T=2, B=1, H=16, strided=True))
    cases.append(Case("gru", "bfloat16", "one CTA", T=4, B=4, H=16, lengths=(4, 1, 3)))
    cases.append(Case("gru", "bfloat16", "grid", T=2, B=1, H=32, D=1))
    cases.append(Case("lstm", "float16", "one CTA", T=4, B=4, H=16, resets="some"))
    # Two replicas of three tiles of rows; more tiles of K than warps.
    cases.append(Case("lstm", "float16", "grid", T=3, B=34, H=20, D=1, sms=4))
    cases.append(Case("gru", "tf32", "grid", T=3, B=2, H=133, D=1))
    # Two pieces of the operand are all that there are: of two tiles of rows one each.
    cases.append(Case("rnn_tanh", "bfloat16", "grid", T=3, B=9, H=20, D=1, sms=3))
    # More tiles in shared memory than are on their way at once.
    cases.append(Case("lstm", "float16", "cluster", T=2, B=1, H=260, D=1))
    # Weights in shared memory of the grid: several tiles of a warp, of the last warp a tile fewer.
    cases.append(Case("lstm", "float32", "grid", T=2, B=1, H=620, D=1))
    # x's part of the gates by the kernel.
    cases.append(Case("gru", "float16", "one CTA", T=7, B=3, H=18, inputs=33))
    cases.append(Case("lstm", "tf32", "grid", H=9, sizes=(4, 2, 2, 1), inputs=5))
    return cases


def worst_of(ops, case: Case) -> tuple[float, str]:
    p = problem(case)
    return worst(case, fused(ops, case, p), expected(case, p))
