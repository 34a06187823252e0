"""How fast SRU's recurrence alone moves memory, against how fast this machine reads it. CPU, float32.

The scan computes some forty operations for every five values or more that it moves, so that memory is what
bounds it. The problem is larger than the caches; the bytes are those that have to move: forward u, x and h,
in training c too; backward u, x, c and the gradient of h in, the gradients of u and x out.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from fastrnn.proof.timing import Contender, interleave

#: Steps, rows, features: 52 MB forward, 105 MB backward. The largest result, u's gradient of 31.5 MB, is
#: just small enough for glibc's malloc to keep it from call to call: at 64 steps first touches of new pages,
#: which are not the recurrence, take half of the backward pass.
SHAPE = (40, 64, 1024)
K = 3
BUDGET_S = 2.0
_READ_BYTES = 256 << 20

#: Values that each pass moves a step, row and feature.
VALUES = {"inference": K + 2, "forward in training": K + 3, "backward": 2 * K + 4}


def measure(threads: int, budget_s: float = BUDGET_S, shape: tuple[int, int, int] = SHAPE) -> list[dict]:
    """A line for each pass: name, threads, seconds, bytes, and the rate of reading, bytes a second, on as
    many threads as the passes have.

    Seconds are the shortest sample's, as the rate of reading is the best of many: whoever else is at work on
    the same memory would otherwise slow down one side of the comparison alone.
    """
    steps, rows, features = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    u, x, grad_h = (draw(steps, rows, *more, features) for more in ((K,), (), ()))
    weight_c, bias, c0 = draw(2, features), draw(2, features), draw(rows, features)
    inputs, none = (u, x, weight_c, bias, c0, None, None, None, None, None), (False, 1.0, False)
    forward, backward = torch.ops.fastrnn.sru_forward, torch.ops.fastrnn.sru_backward
    cells = forward(*inputs, *none, True)[2]
    calls = {
        "inference": lambda: forward(*inputs, *none, False),
        "forward in training": lambda: forward(*inputs, *none, True),
        "backward": lambda: backward(grad_h, None, None, *inputs, cells, *none, 1 + 2 + 4),
    }
    timings = interleave([Contender(name, name, call) for name, call in calls.items()], budget_s=budget_s)

    with ThreadPoolExecutor(threads) as pool:  # each thread reads its own part
        part = _READ_BYTES // threads
        reading = max(
            sum(pool.map(lambda _: torch.ops.fastrnn.cpu_read_bandwidth(part), range(threads)))
            for _ in range(3)
        )
    elements = steps * rows * features * u.element_size()
    return [
        {
            "name": name,
            "threads": threads,
            "seconds": min(timing.samples),
            "bytes": VALUES[name] * elements,
            "reading": reading,
        }
        for name, timing in timings.items()
    ]


def share(line: dict) -> float:
    """The rate of a pass, of the rate of reading."""
    return line["bytes"] / line["seconds"] / line["reading"]
