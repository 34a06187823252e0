"""From verdicts and times to the tiers that run: pure, and careful with what it credits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .kinds import TIERS, Candidate, Kind

#: What replaces torch's own layer has to win by so much: a time differs by a few hundredths from day to day.
WORTH = 0.95
STEPWISE, TORCH = "stepwise", "torch"
_ORDER = {tier: number for number, tier in enumerate((STEPWISE, *TIERS))}


class Decision(NamedTuple):
    """forward, backward: a tier's name, or "torch" for both: torch's own layer. why: in words."""

    forward: str
    backward: str
    why: str


def slow(which: str, us: float, stepwise_us: float) -> str:
    """Why a candidate is of no use that a step at a time outruns, "" where it does not."""
    if us <= stepwise_us:
        return ""
    return f"slow: {us:.1f} µs {which}, a step at a time takes {stepwise_us:.1f}"


def decide(
    kind: Kind, times: Mapping[Candidate, float], stepwise: Mapping[str, float], torch_us: float | None
) -> Decision:
    """The fastest tier of each pass, if together they beat torch's own layer by 5% or more.

    Args:
        times: microseconds of each verified candidate. stepwise: of the stepwise tier, by pass.
        torch_us: of all passes of torch's own layer, None where it cannot compute the kind. Then, and only
            then, what is to be beaten by that much is the stepwise tier.
    """
    best = {}
    for which in kind.passes:
        found = [(us, c.tier) for c, us in times.items() if c.which == which]
        # Of equals the one that takes the fewest SMs.
        best[which] = min([(stepwise[which], STEPWISE), *found], key=lambda pair: (pair[0], _ORDER[pair[1]]))
    total = sum(us for us, _ in best.values())
    tiers = {which: tier for which, (_, tier) in best.items()}
    forward, backward = tiers["forward"], tiers.get("backward", STEPWISE)
    if torch_us is not None:
        if total <= WORTH * torch_us:
            return Decision(forward, backward, f"{total:.1f} µs, torch's own layer takes {torch_us:.1f}")
        return Decision(TORCH, TORCH, f"torch's own layer takes {torch_us:.1f} µs, the kernels {total:.1f}")
    plain = sum(stepwise[which] for which in kind.passes)
    if total <= WORTH * plain:
        return Decision(forward, backward, f"{total:.1f} µs, a step at a time takes {plain:.1f}")
    return Decision(STEPWISE, STEPWISE, f"a step at a time takes {plain:.1f} µs, others {total:.1f} or more")
