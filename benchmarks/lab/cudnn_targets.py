"""What the project set out to reach against cuDNN on Hopper, by the regimes in which cuDNN differs.

Same precision, the input projection included. Each target is about the geometric mean of the ratios, and no
case may be slower than torch.nn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from . import cudnn, targets
from .cases import Case
from .presets import NAMED

#: Nowhere slower.
EVEN = 1.0


@dataclass(frozen=True)
class Target:
    """forward, training: the geometric mean that is wanted of inference, and of forward and backward."""

    name: str
    includes: Callable[[Case], bool]
    forward: float
    training: float


def _standard(case: Case) -> bool:
    return cudnn.regime(replace(case, training=False)) == cudnn.STANDARD


def _persistent(case: Case) -> bool:
    return cudnn.regime(replace(case, training=False)) == cudnn.PERSISTENT


TARGETS = (
    Target(
        "fp16 LSTM, H=768, B=16, T=1024",
        lambda c: (c.cell, c.dtype, c.T, c.B, c.H) == (NAMED.cell, NAMED.dtype, NAMED.T, NAMED.B, NAMED.H),
        2.0,
        1.8,
    ),
    Target("H up to 64", lambda c: c.H <= 64, 2.0, 2.0),
    Target("H = 128", lambda c: c.H == 128, 4.0, 3.0),
    Target("H 129 to 192, B from 16", lambda c: 128 < c.H <= 192 and c.B >= 16, 10.0, 5.0),
    Target("H 193 to 768, cuDNN's STANDARD", lambda c: 192 < c.H <= 768 and _standard(c), 6.0, 4.0),
    Target("H 256 to 768, cuDNN's PERSIST_STATIC", lambda c: 256 <= c.H <= 768 and _persistent(c), 2.0, 1.8),
    Target("H 1024 to 2048, B up to 64", lambda c: 1024 <= c.H <= 2048 and c.B <= 64, 3.0, 2.0),
    Target("H from 1024, B from 256", lambda c: c.H >= 1024 and c.B >= 256, EVEN, EVEN),
)


def evaluate(results: Sequence[dict], threads: int) -> list[dict]:
    """Lines like those of targets.evaluate(): for each target that has data, forward and training, of single
    layers in one direction; and one over everything, whose worst case counts alone."""
    timed = []
    for result in results:
        case = Case(**result["case"])
        value = targets.ratio(result, targets.TORCH)
        if case.device.startswith("cuda") and result["threads"] == threads and value is not None:
            timed.append((case, value[0]))
    lines = []
    for target in TARGETS:
        for training, wanted in ((False, target.forward), (True, target.training)):
            mine = [
                (c, v)
                for c, v in timed
                if c.training == training
                and (c.path, c.layers, c.directions) == ("layers", 1, 1)
                and target.includes(c)
            ]
            work = "forward and backward" if training else "forward"
            lines += _line(f"{target.name}, {work}", mine, wanted, threads)
    return lines + _line("Every case", timed, EVEN, threads)


def _line(name: str, timed: Sequence[tuple[Case, float]], wanted: float, threads: int) -> list[dict]:
    if not timed:
        return []
    mean = targets.geomean([v for _, v in timed])
    case, worst = min(timed, key=lambda t: t[1])
    return [
        {
            "name": name,
            "threads": threads,
            "cases": len(timed),
            "geomean": mean,
            "worst": worst,
            "worst_case": f"{case.group} {case.shape}",
            "target_geomean": wanted,
            "target_worst": EVEN,
            "met": mean >= wanted and worst >= EVEN,
        }
    ]
