"""A tier for seconds on end: T = 20000, again and again, the same bits each time, beside noise on another
stream.

    PYTHONPATH=.:tests python tests/gpu/soak.py TIER [--seconds 10] [--steps 20000]

What is rare shows itself here if anywhere: a block that overtakes another, a flag or a buffer used a step too
early. TIER: one_cta, cluster or grid, each at a size that is its own, LSTM and GRU in turn, forward and
backward. Exit status 1 where bits differ or are not finite, or another tier ran.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lines
import torch
import what_ran
from layer_cases import Case, Problem, backward, forward, names
from torch import Tensor

STEPS = 20_000
#: B, H: the batch in two tiles of rows; as wide as the tier is meant for.
SIZES = {"one_cta": (16, 128), "cluster": (16, 512), "grid": (16, 1024)}
CELLS = ("lstm", "gru")


def case_of(tier: str, cell: str, steps: int = STEPS) -> Case:
    B, H = SIZES[tier]
    return Case(cell, T=steps, B=B, IN=32, H=H, dtype=torch.bfloat16, tier=tier)


def made(case: Case, device: str, seed: int = 0) -> Problem:
    """As layer_cases.problem(), drawn where it is used: gigabytes."""
    generator = torch.Generator(device).manual_seed(seed)
    G, scale = {"lstm": 4, "gru": 3}[case.cell], case.H**-0.5

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        wide = torch.rand(shape, generator=generator, device=device, dtype=torch.float32) * 2 - 1
        return (wide * scale).to(case.dtype)

    T, B, H = case.T, case.B, case.H
    lstm = case.cell == "lstm"
    weights = [draw(G * H, case.IN, scale=scale), draw(G * H, H, scale=scale)]
    weights += [draw(G * H, scale=0.5), draw(G * H, scale=0.5)]
    states = [draw(1, B, H) for _ in range(1 + lstm)]
    cotangents = [draw(T, B, H), *(draw(1, B, H) for _ in states)]
    return Problem(draw(T, B, case.IN), states[0], states[1] if lstm else None, weights, None, cotangents)


def both(ops, case: Case, p: Problem) -> list[Tensor]:
    """Outputs and every gradient, of the tier that is meant."""
    lstm = case.cell == "lstm"
    with what_ran.only(ops, case.tier):
        saved = forward(ops, case, p)
        x, h0, c0, weights = backward(ops, case, p, saved)
    return [*saved[: 2 + lstm], x, h0, *([c0] if lstm else []), *weights]


def soak(
    ops, case: Case, p: Problem, seconds: float, noise: Callable[[], None] = lambda: None
) -> tuple[int, str]:
    """How many runs there were, at least two, and "ok" or what was wrong with the last."""
    first, runs, end = both(ops, case, p), 1, time.monotonic() + seconds
    for name, t in zip(names(case), first, strict=True):
        if not torch.isfinite(t).all():
            return runs, f"{name} is not finite"
    while runs < 2 or time.monotonic() < end:
        noise()
        again = both(ops, case, p)
        runs += 1
        for name, a, b in zip(names(case), first, again, strict=True):
            if not torch.equal(a, b):
                return runs, f"{name} of run {runs} has other bits than that of the first"
    return runs, "ok"


@contextmanager
def noise_beside(seed: int = 0) -> Iterator[Callable[[], None]]:
    """Queues products and copies, never as many twice, on a stream of its own."""
    stream, rng = torch.cuda.Stream(), random.Random(seed)
    a = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    out, copied = torch.empty_like(a), torch.empty(64 << 20, device="cuda", dtype=torch.uint8)
    stream.wait_stream(torch.cuda.current_stream())

    def noise() -> None:
        with torch.cuda.stream(stream):
            for _ in range(rng.randrange(200)):
                size = 128 * rng.randrange(1, 17)
                torch.mm(a[:size], a, out=out[:size])
                if rng.random() < 0.2:
                    copied[: 32 << 20].copy_(copied[32 << 20 :])

    yield noise
    stream.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tier", choices=SIZES)
    parser.add_argument("--seconds", type=float, default=10.0, help="of all cells together")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    ops, failed = torch.ops.fastrnn, False
    with noise_beside() as noise:
        for cell in CELLS:
            case = case_of(options.tier, cell, options.steps)
            lines.write("outcome", name=str(case), outcome="running")
            try:
                runs, found = soak(ops, case, made(case, "cuda"), options.seconds / len(CELLS), noise)
            except (AssertionError, RuntimeError) as error:
                runs, found = 0, f"{type(error).__name__}: {error}".splitlines()[0]
            lines.write("outcome", name=str(case), outcome=found, runs=runs)
            print(f"{case}: {found}, {runs} runs", flush=True)
            failed = failed or found != "ok"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
