"""Each kernel of a tier once, small, with a line for each: what the first contact with a GPU wants to know.

    PYTHONPATH=.:tests python tests/gpu/smoke.py TIER

TIER: one of fastrnn's tiers of CUDA kernels, clusters by their size, or "scan", the SRU's. A line says what
runs, and then whether its numbers are right, before the next starts: the last line names what crashed or
hangs. The results of a call of check.py (lines.py) then have "running" there. A tier is right where its own
kernels were, by the library's count of what ran. Exit status 1 where a line is not ok.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import layer_cases
import lines
import sru_cases
import torch
import what_ran
from tolerances import TOLERANCES, error
from torch import Tensor

TIERS = ("stepwise", "stepwise_graph", "one_cta", "cluster_4", "cluster_8", "cluster_16", "grid", "scan")
#: The plainest first: where it fails, what follows says little.
TYPES = ((torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float32, False))
CELLS = ("rnn_tanh", "lstm", "gru", "rnn_relu")

#: A line's name, and what it runs: names of results, their tolerance, what came, what was expected.
Run = tuple[str, Callable[[], tuple[Sequence[str], tuple[float, float], Sequence[Tensor], Sequence[Tensor]]]]


def layer_runs(ops, case: layer_cases.Case, move: Callable[[Tensor], Tensor]) -> Iterator[Run]:
    """Forward, then backward from what it left."""
    p, names, lstm = layer_cases.problem(case), layer_cases.names(case), case.cell == "lstm"
    want, moved, saved = layer_cases.expected(case, p), p.map(move), []

    def forward():
        with what_ran.only(ops, case.tier, "forward"):
            saved.extend(layer_cases.forward(ops, case, moved))
        return names[: 2 + lstm], case.tolerance, saved[: 2 + lstm], want[: 2 + lstm]

    def backward():
        if not saved:
            raise RuntimeError("forward has left nothing")
        with what_ran.only(ops, case.tier, "backward"):
            x, h0, c0, weights = layer_cases.backward(ops, case, moved, tuple(saved))
        got = [x, h0, *([c0] if lstm else []), *weights]
        return names[2 + lstm :], case.tolerance, got, want[2 + lstm :]

    name = f"{case.tier} {case.cell} {'tf32' if case.tf32 else str(case.dtype).removeprefix('torch.')}"
    yield f"{name} forward", forward
    yield f"{name} backward", backward


def scan_run(ops, case: sru_cases.Case, move: Callable[[Tensor], Tensor]) -> Run:
    """Both passes at once: neither waits for anything but memory."""

    def both():
        p = sru_cases.problem(case)
        got = sru_cases.fused(ops, case, p.map(move))
        return sru_cases.names(case), TOLERANCES[case.dtype], got, sru_cases.expected(case, p)

    return f"scan {case}", both


def runs(ops, tier: str, move: Callable[[Tensor], Tensor]) -> Iterator[Run]:
    """Every cell and type. Layers of two directions, two tiles of rows, three of units, the last in part."""
    if tier == "scan":
        for dtype in (torch.float32, *layer_cases.DTYPES[2:], torch.float64):
            plain = sru_cases.Case(L=30, dtype=dtype)
            yield scan_run(ops, plain, move)
            yield scan_run(ops, replace(plain, D=2, v=True, pad=True, drop=True, tanh=True), move)
        return
    for cell in CELLS:
        for dtype, tf32 in TYPES:
            if not tier.startswith("cluster") or dtype != torch.float32 or tf32:  # where it has a kernel
                case = layer_cases.Case(cell, T=6, B=9, IN=5, H=41, D=2, dtype=dtype, tf32=tf32, tier=tier)
                yield from layer_runs(ops, case, move)


def outcome(run: Callable, finish: Callable[[], None]) -> str:
    """ "ok", or what is wrong."""
    try:
        names, tolerance, got, want = run()
        finish()
        wrong = []
        for name, g, w in zip(names, got, want, strict=True):
            ratio = error(g.cpu(), w) / tolerance[name.startswith("grad")]
            if not ratio <= 1:  # NaN too
                wrong.append(f"{name} {ratio:.3g} times its tolerance")
    except Exception as failure:  # which is what is looked for
        return f"{type(failure).__name__}: {str(failure).strip() or '(no message)'}".splitlines()[0]
    return f"wrong: {', '.join(wrong)}" if wrong else "ok"


def smoke(
    chosen: Iterable[Run],
    finish: Callable[[], None],
    alive: Callable[[], bool],
    report: Callable[[str, str], None] = lambda name, outcome: None,
) -> dict[str, str]:
    """Outcomes by name. report: called before ("running") and after each. finish: waits for the device.

    A kernel that breaks the device's context ends the list: nothing after it would mean anything.
    """
    outcomes: dict[str, str] = {}
    for name, run in chosen:
        report(name, "running")
        print(f"{name:32s} ", end="", flush=True)
        outcomes[name] = outcome(run, finish)
        print(outcomes[name], flush=True)
        report(name, outcomes[name])
        if not alive():
            print("the GPU's context is lost: the rest was not run", flush=True)
            break
    return outcomes


def context_alive() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tier", choices=TIERS)
    options = parser.parse_args()
    outcomes = smoke(
        runs(torch.ops.fastrnn, options.tier, lambda t: t.cuda()),
        torch.cuda.synchronize,
        context_alive,
        lambda name, outcome: lines.write("outcome", name=name, outcome=outcome),
    )
    return int(any(text != "ok" for text in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
