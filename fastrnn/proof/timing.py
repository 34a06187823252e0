"""Interleaved timing: contenders take turns in one process, so that a slow minute hits all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

MIN_ROUNDS = 7
#: What a hurried run falls back to where the machine is too slow for its budget.
FEW_ROUNDS = 3
MAX_ROUNDS = 201
#: A sample repeats a call until it has taken this long: thousands of timer ticks.
SAMPLE_S = 2e-3
#: OpenMP's workers go on spinning for some milliseconds after a parallel region, on the cores the next
#: contender needs.
SETTLE_S = 4e-3
#: A call longer than this is its own warm-up: what the first touch of cold caches costs no longer shows.
LONG_S = 20e-3


def _nothing() -> None:
    pass


@dataclass
class Contender:
    """Something to time.

    Attributes:
        key: short name, the same in every case ("fastrnn", "torch").
        label: what it is ("torch.nn (oneDNN)").
        call: the work. It returns when the work is done or, on a GPU, queued.
        result: the outputs and gradients of one call by name, to compare before anything is timed.
        prepare: runs untimed before every call.
        enter: runs untimed before every sample.
        sync: waits for queued work.
        few: enough rounds for a contender that nothing is measured against.
    """

    key: str
    label: str
    call: Callable[[], Any]
    result: Callable[[], dict[str, Any]] = dict
    prepare: Callable[[], Any] | None = None
    enter: Callable[[], Any] = _nothing
    sync: Callable[[], Any] = _nothing
    few: bool = False


#: Largest difference of two contenders' results, relative to the largest value, that counts as the same work.
AGREEMENT = {"float32": 2e-3, "float64": 1e-9, "bfloat16": 8e-2, "float16": 1e-2, "tf32": 1e-2}


def disagreement(result: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any output or gradient, relative to that tensor's largest value."""
    worst = 0.0
    for name, tensor in result.items():
        got = tensor.double()
        want = expected[name].to(got)
        if got.shape != want.shape:
            raise ValueError(f"{name} has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        if want.numel():
            # A NaN must not hide: comparisons with it are false.
            difference = float((got - want).abs().max() / want.abs().max().clamp_min(1e-12))
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


@dataclass
class Timing:
    """Samples of one contender: seconds a call, one for each round."""

    samples: list[float] = field(default_factory=list)
    calls: int = 1

    def quantile(self, q: float) -> float:
        """Linear interpolation between the ordered samples."""
        ordered = sorted(self.samples)
        position = q * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    @property
    def median(self) -> float:
        return self.quantile(0.5)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a part of the median."""
        return (self.quantile(0.75) - self.quantile(0.25)) / 2 / self.median

    def to_dict(self) -> dict:
        return {
            "median_s": self.median,
            "q25_s": self.quantile(0.25),
            "q75_s": self.quantile(0.75),
            "min_s": min(self.samples),
            "max_s": max(self.samples),
            "rounds": len(self.samples),
            "calls": self.calls,
        }


def _once(contender: Contender) -> float:
    if contender.prepare is not None:
        contender.prepare()
        contender.sync()
    start = time.perf_counter()
    contender.call()
    contender.sync()
    return time.perf_counter() - start


def _sample(contender: Contender, calls: int, estimate: float, settle: bool) -> float:
    """Seconds a call, over so many calls."""
    contender.enter()
    if settle:
        time.sleep(SETTLE_S)
    if estimate < LONG_S:
        _once(contender)
    if contender.prepare is not None:
        return sum(_once(contender) for _ in range(calls)) / calls
    start = time.perf_counter()
    for _ in range(calls):
        contender.call()
    contender.sync()
    return (time.perf_counter() - start) / calls


def interleave(
    contenders: Sequence[Contender],
    *,
    budget_s: float,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = MAX_ROUNDS,
    hurry: bool = False,
    settle: bool = False,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time the contenders in rounds until the budget is spent, at least min_rounds.

    A round takes one sample of each, in an order drawn anew: nobody always follows the same neighbour. A
    contender marked ``few`` sits out once it has FEW_ROUNDS samples, where its calls are long.

    Args:
        budget_s: seconds for everything here, warm-up included; min_rounds may exceed it.
        hurry: past the budget, be content with FEW_ROUNDS.
        settle: rest before each sample, for runs with several threads.
    """
    order = list(contenders)
    deadline = time.perf_counter() + budget_s
    timings, estimates = {}, {}
    for c in order:
        c.enter()
        first = _once(c)  # compiles, packs, allocates
        estimates[c.key] = _once(c) if first < 0.2 else first
        timings[c.key] = Timing(calls=max(1, min(1000, round(SAMPLE_S / max(estimates[c.key], 1e-7)))))

    shuffle = random.Random(seed).shuffle
    enough = min(min_rounds, FEW_ROUNDS) if hurry else min_rounds
    for done in range(max_rounds):
        if done >= enough and time.perf_counter() > deadline:
            break
        shuffle(order)
        for c in order:
            timing = timings[c.key]
            if c.few and len(timing.samples) >= FEW_ROUNDS and estimates[c.key] > 2 * LONG_S:
                continue
            timing.samples.append(_sample(c, timing.calls, estimates[c.key], settle))
    return timings
