"""What a call of a module costs above the operator that does its work: Python, checks, default states.

One step of one row on the CPU, inference. The operator gets tensors that are ready for it; its own time,
the dispatcher's included, is what is subtracted. torch.nn's modules stand beside fastrnn's, above torch's
operators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fastrnn.proof.timing import Contender, interleave

#: Inputs and hidden units: those of the latency target.
SIZE = 256
BUDGET_S = 0.25

#: Shown in this order.
MODULES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "SRU", "LSTM streamer", "GRU streamer")


def _calls(name: str) -> dict[str, tuple[Callable, Callable]]:
    """(module call, operator call) of fastrnn and, where it has such a module, of torch."""
    import fastrnn
    from fastrnn._ops import library

    x, zeros = torch.randn(1, SIZE), torch.zeros(1, SIZE)
    if name == "SRU":
        sru = fastrnn.SRU(SIZE, SIZE, 1).eval()
        layer = sru.rnn_lst[0]
        arguments = (layer.transform_module.weight, x, layer.weight_c, layer.bias, zeros, False, 1.0)
        return {"fastrnn": (lambda: sru(x[None]), lambda: library.sru_step(x, *arguments))}

    kind, _, streamed = name.partition(" ")
    cell = kind.removesuffix("Cell").lower()
    ours, theirs = (getattr(package, kind)(SIZE, SIZE).eval() for package in (fastrnn, nn))
    theirs.load_state_dict(ours.state_dict())
    kernel, lstm = {"rnn": "rnn_tanh"}.get(cell, cell), cell == "lstm"
    weights = [p.detach() for p in ours.parameters()]
    steps, h = x[None], zeros[None]
    c = h if lstm else None
    if streamed:
        stream, packed = ours.streamer(), [library.pack(weights, kernel, True)]
        state = (h, h) if lstm else h
        return {"fastrnn": (lambda: stream.step(x, state), lambda: library.stream(x, h, c, packed))}

    def operator():
        return library.forward(steps, h, c, weights, None, None, None, kernel, True, 0)

    if kind.endswith("Cell"):
        native, state = getattr(torch._VF, f"{kernel}_cell"), ((zeros, zeros) if lstm else zeros)
        return {
            "fastrnn": (lambda: ours(x, state), operator),
            "torch": (lambda: theirs(x, state), lambda: native(x, state, *weights)),
        }
    native, state = getattr(torch._VF, kernel), ((h, h) if lstm else h)
    options = (True, 1, 0.0, False, False, False)
    return {
        "fastrnn": (lambda: ours(steps), operator),
        "torch": (lambda: theirs(steps), lambda: native(steps, state, weights, *options)),
    }


def measure(threads: int, budget_s: float = BUDGET_S) -> list[dict]:
    """A line for each of MODULES: name, threads, and for each package seconds of a module's call and of its
    operator's, all of one line taking turns."""
    lines = []
    for name in MODULES:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            contenders = [
                Contender(f"{package} {what}", name, call)
                for package, calls in _calls(name).items()
                for what, call in zip(("call", "operator"), calls, strict=True)
            ]
            timings = interleave(contenders, budget_s=budget_s, settle=threads > 1)
        line: dict = {"name": name, "threads": threads}
        for key, timing in timings.items():
            package, what = key.split()
            line.setdefault(package, {})[f"{what}_s"] = timing.median
        lines.append(line)
    return lines


def above(line: dict, package: str = "fastrnn") -> float | None:
    """Seconds of a module's call above its operator's; None where a package has no such module."""
    times = line.get(package)
    return times["call_s"] - times["operator_s"] if times else None
