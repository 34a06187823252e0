"""What run_faults runs where the emulator's own troubles have to find a fault, without the race check."""

from __future__ import annotations

from dataclasses import dataclass

from persistent_cases import Case, expected, fused, problem, worst


@dataclass(frozen=True)
class Weather:
    """stale: loads may be old until an acquire. apart: each pair of blocks has its own delay."""

    stale: bool
    apart: bool

    def check_cases(self) -> list[tuple[Case, int]]:
        """With a seed each: enough steps that a buffer is used again and again, several CTAs."""
        cases = [
            Case("lstm", "bfloat16", "grid", T=6, B=3, H=40, D=1),
            Case("gru", "float16", "cluster", T=6, B=3, H=60, D=1),
            Case("rnn_tanh", "bfloat16", "cluster", T=6, B=9, H=100, D=1, cluster=8, sms=8),
        ]
        return [(case, seed) for case in cases for seed in range(4)]

    def worst_of(self, ops, case: tuple[Case, int]) -> tuple[float, str]:
        shape, seed = case
        ops.trouble(-1, self.stale, self.apart, False)
        p = problem(shape, seed)
        return worst(shape, fused(ops, shape, p), expected(shape, p))


CALM, STALE, APART = Weather(False, False), Weather(True, False), Weather(False, True)
