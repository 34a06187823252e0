"""How close the recurrent kernels alone come to what this machine can do. CPU, float32.

From some rows on the limit is the multiply-adds of a core, and every layer's forward and backward pass is
held against their rate; with a single row it is the reading of the recurrent weights, once a step, from the
level of the cache that holds them. Limits are measured around the passes: a slow minute hits both.

Neither limit is all that a layer has to do. What the rest takes at its own limit stands beside it, measured
in the same run: the functions of the cell, which are multiply-adds that the products' count leaves out; of a
single row the product of the inputs; and of several threads that split the units, their meetings, one a step.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from fastrnn._ops import library
from fastrnn.proof import machine
from fastrnn.proof.timing import Contender, interleave

from .cases import Case
from .presets import SHAPES
from .problem import flops, weight_bytes

BUDGET_S = 8.0
#: More threads than a small machine has cores, asked for by a layer of one row.
CROWD, CROWD_SHAPE = 8, (50, 1, 256)
CELLS = ("lstm", "gru")
FORWARD, BACKWARD, READING = "forward", "backward", "forward, one row"

#: Gradients of everything.
_NEEDS = 15


def _passes(cell: str, T: int, B: int, H: int) -> dict[str, Callable[[], object]]:
    """The operators of one layer with as many inputs as units."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return (torch.rand(size, generator=generator) - 0.5) * 2 * H**-0.5

    gates = {"lstm": 4, "gru": 3}[cell]
    weights = [draw(gates * H, H), draw(gates * H, H), draw(gates * H), draw(gates * H)]
    x, grad = torch.randn(T, B, H, generator=generator), torch.randn(T, B, H, generator=generator)
    h = torch.zeros(1, B, H)
    c = h if cell == "lstm" else None
    rows = (None, None, None)
    y, _, _, saved, cells = library.forward(x, h, c, weights, *rows, cell, True, 1)
    back = (grad, None, None, None, x, h, c, weights, *rows, y, saved, cells, cell, True, _NEEDS)
    return {
        FORWARD: lambda: library.forward(x, h, c, weights, *rows, cell, True, 0),
        BACKWARD: lambda: library.backward(*back),
    }


def _together(probe: Callable[[], float], threads: int) -> float:
    """The sum of a one-thread probe's rates on so many threads at once."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: probe(), range(threads)))


def _beside(cell: str, threads: int, T: int, B: int, H: int) -> dict[str, float]:
    """Seconds of what a forward pass does beside its products, at best."""
    rate = _together(lambda: torch.ops.fastrnn.cpu_cell_rate(cell), threads)
    split = threads > 1 and library.cpu_last_plan()["unit_groups"] > 1
    return {
        "cell": T * B * H / rate,
        "meetings": T * torch.ops.fastrnn.cpu_meeting(threads) if split else 0.0,
    }


def measure(
    threads: int,
    budget_s: float = BUDGET_S,
    shapes: tuple[tuple[int, int, int], ...] = SHAPES,
) -> list[dict]:
    """A line for each pass of each layer whose limit is known: cell, name, T, B, H, threads, seconds, and
    work and limit, in operations and operations a second, or in bytes and bytes a second; and beside, the
    seconds of what else it has to do.

    Seconds are the median's, and the limit is the best of what was measured around them.
    """
    shapes = tuple(s for s in shapes if s[1] >= 16 or (s[1] == 1 and s[0] >= 50))
    lines = []
    for cell in CELLS:
        for T, B, H in shapes:
            case = Case(cell, "layers", False, T, B, H, H)
            recurrent, _ = weight_bytes(case)
            reading = B == 1

            def limit(reading=reading, part=recurrent // threads) -> float:
                if reading:
                    return _together(lambda: torch.ops.fastrnn.cpu_read_bandwidth(part), threads)
                return _together(torch.ops.fastrnn.cpu_fma_peak, threads)

            passes = _passes(cell, T, B, H)
            if reading:
                passes = {READING: passes[FORWARD]}
            before = limit()
            timings = interleave(
                [Contender(name, name, call) for name, call in passes.items()],
                settle=threads > 1,
                budget_s=budget_s / len(CELLS) / len(shapes),
            )
            rate = max(before, limit())
            forward = flops(case)
            beside = _beside(cell, threads, T, B, H)
            if reading:
                peak = _together(torch.ops.fastrnn.cpu_fma_peak, threads)
                beside["inputs"] = forward * H / (H + H) / peak
            parts = {BACKWARD: {"meetings": beside["meetings"]}}
            work = {FORWARD: forward, BACKWARD: 2 * forward, READING: T * recurrent}
            lines.extend(
                {
                    "cell": cell,
                    "name": name,
                    "T": T,
                    "B": B,
                    "H": H,
                    "threads": threads,
                    "seconds": timing.median,
                    "work": work[name],
                    "limit": rate,
                    "beside": parts.get(name, beside),
                }
                for name, timing in timings.items()
            )
    return lines


def crowd(budget_s: float = 1.0, shape: tuple[int, int, int] = CROWD_SHAPE) -> dict:
    """An LSTM over one row by CROWD threads, whatever the cores, and by one: the best times."""
    call, before = _passes("lstm", *shape)[FORWARD], torch.get_num_threads()
    contenders = [
        Contender(str(n), str(n), call, enter=lambda n=n: torch.set_num_threads(n)) for n in (1, CROWD)
    ]
    try:
        timings = interleave(contenders, settle=True, budget_s=budget_s)
    finally:
        torch.set_num_threads(before)
    one, many = (min(timings[str(n)].samples) for n in (1, CROWD))
    return {"threads": CROWD, "cores": machine.usable_cores(), "one_s": one, "many_s": many}


def least(line: dict) -> float | None:
    """Seconds of all that a pass has to do, one after the other, each at its limit. None of an older run."""
    if "beside" not in line:
        return None
    return line["work"] / line["limit"] + sum(line["beside"].values())


def share(line: dict) -> float:
    """The rate of a pass, of its limit."""
    return line["work"] / line["seconds"] / line["limit"]
