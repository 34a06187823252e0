"""One process of a benchmark run: it times all cases on one number of threads.

The request is one JSON object on stdin; every event is one line of JSON on the original stdout:
    {"event": "limits", …}   {"event": "start", "title": …}   {"event": "overhead", …}
    {"event": "scan", …}     {"event": "kernels", …}  {"event": "crowd", …}
    {"event": "result", …}   {"event": "scaling", …}
and, where the request has an end ("limit_s"), for supervisor.py
    {"event": "running", "key": …}   before each contender's first call and each of its samples
    {"event": "dropped", …}          a case that there was no time for
Libraries that print do so on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from fastrnn.proof.timing import AGREEMENT, Contender, disagreement, interleave

from . import kernel_rate, limits, overhead, scan_rate
from .cases import BESIDE, Case
from .contenders.compile import forget
from .contenders.contender import Unsupported, mode
from .contenders.registry import NAMES, ROW, build, standard
from .problem import Problem

Emit = Callable[..., None]


def make_contenders(
    case: Case,
    keys: list[str],
    threads: int,
    excluded: dict[str, str] | None = None,
    announce: Callable[[str], None] = lambda key: None,
) -> tuple[list[Contender], dict, dict]:
    """The contenders that do this case and agree with the standard; {key: difference}; {key: why not}.

    The difference of torch.nn's layer beside what it has not, and of the plain layer beside a variant, which
    are other functions, is None.

    Args:
        excluded: keys to leave out, and why.
        announce: told the key of whom is run next.
    """
    problem = Problem(case)
    made, differences, skipped = [], {}, dict(excluded or {})
    announce(standard(case))
    expected = build(standard(case), problem, threads).result()
    for key in keys:
        if key in skipped:
            continue
        announce(key)
        try:
            contender = build(key, problem, threads)
            other = key == "plain" or (key == "torch" and case.cell in BESIDE)
            difference = None if other else disagreement(contender.result(), expected)
        except Unsupported as reason:
            skipped[key] = str(reason)
            continue
        except Exception as error:  # a failure is a line of the report, not the end of the run
            if case.device.startswith("cuda"):
                torch.cuda.synchronize()  # unless it broke CUDA for this process: then this raises
            skipped[key] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        if difference is not None and difference > AGREEMENT[case.dtype] and not _same_in_float64(key, case):
            skipped[key] = f"differs from {NAMES[standard(case)]} by {difference:.1e}"
            continue
        differences[key] = difference
        made.append(contender)
    return made, differences, skipped


def _same_in_float64(key: str, case: Case) -> bool:
    """Whether a contender whose float32 is too far off computes the same all the same."""
    if case.dtype != "float32" or key not in ROW or not ROW[key].loses_digits:
        return False
    problem = Problem(replace(case, dtype="float64"))
    found = ROW[key].build(problem, 1).result()  # which build() offers in float32 alone
    return disagreement(found, build(standard(case), problem, 1).result()) <= AGREEMENT["float64"]


def time_case(
    case: Case,
    keys: list[str],
    threads: int,
    excluded: dict[str, str] | None = None,
    announce: Callable[[str], None] | None = None,
    **timing,
) -> dict:
    """Time one case: {"case", "threads", "contenders": {key: times}, "skipped": {key: reason}}.

    excluded, announce: see make_contenders(). timing: budget_s, min_rounds and hurry of interleave().
    """
    contenders, differences, skipped = make_contenders(
        case, keys, threads, excluded, announce or (lambda key: None)
    )
    if announce:
        for c in contenders:
            c.enter = partial(announce, c.key)
    # On a GPU there are no threads to come to rest.
    with mode(case):
        timings = interleave(contenders, settle=threads > 1 and case.device == "cpu", **timing)
    return {
        "case": case.to_dict(),
        "threads": threads,
        "contenders": {
            c.key: {"label": c.label, "difference": differences[c.key], **timings[c.key].to_dict()}
            for c in contenders
        },
        "skipped": skipped,
    }


#: Seconds of timing that a case's scaling gets at least: a moment's disturbance is not to be most of it.
SCALING_S = 1.0


def time_scaling(case: Case, threads: int, **timing) -> dict:
    """fastrnn on one thread and on all of them, taking turns."""
    problem = Problem(case)
    contenders = []
    for n in (1, threads):
        contender = build("fastrnn", problem, n)
        contender.key = str(n)
        contender.enter = lambda n=n: torch.set_num_threads(n)
        contenders.append(contender)
    try:
        with mode(case):
            timings = interleave(contenders, settle=True, **timing)
    finally:
        torch.set_num_threads(threads)
    one, all_ = timings["1"].median, timings[str(threads)].median
    return {"case": case.to_dict(), "threads": threads, "one_s": one, "all_s": all_, "ratio": one / all_}


def set_precision(dtype: str) -> None:
    """Like with like: by default cuDNN may round float32 to TensorFloat-32 and cuBLAS may not."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"


def work(request: dict, emit: Emit) -> None:
    """Do what a request asks for: see run.Request."""
    threads = request["threads"]
    torch.set_num_threads(threads)
    cases = [Case(**c) for c in request["cases"]]
    scaling = [Case(**c) for c in request["scaling"]] if threads > 1 else []

    # What a supervisor adds: when to end, what earlier workers measured, whom they failed with.
    end = time.perf_counter() + request["limit_s"] if request.get("limit_s") else None
    measured = {known["dtype"]: limits.Limits(**known) for known in request.get("limits", ())}
    excluded = request.get("excluded") or [{}] * len(cases)
    for dtype in dict.fromkeys(c.dtype for c in cases if c.dtype not in measured):
        emit("start", title=f"the machine's limits, {dtype}")
        set_precision(dtype)
        measured[dtype] = limits.measure(dtype, cases[0].device, threads, request["limits_s"])
        emit("limits", threads=threads, **measured[dtype].to_dict())

    if request["overhead"]:
        emit("start", title="calls of modules")
        for line in overhead.measure(threads):
            emit("overhead", **line)

    if request["scan"]:
        emit("start", title="SRU's recurrence alone")
        for line in scan_rate.measure(threads):
            emit("scan", **line)

    if request.get("kernels"):
        emit("start", title="the kernels alone")
        for line in kernel_rate.measure(threads):
            emit("kernels", **line)
        if threads > 1:
            emit("crowd", **kernel_rate.crowd())

    began = time.perf_counter()
    deadline = began + request["budget_s"]
    remaining = len(cases) + len(scaling)

    def timing() -> dict:
        """An equal part of the time that is left, so that quick cases lend theirs to slow ones."""
        now = time.perf_counter()
        rounds = request["min_rounds"]
        if end is not None and remaining < len(cases):
            a_case = (now - began) / (len(cases) - remaining)
            if remaining * a_case > end - now:  # fewer rounds before fewer cases
                rounds = 1
        return {
            "budget_s": max(0.1, (deadline - now) / remaining),
            "min_rounds": rounds,
            "hurry": request["hurry"],
        }

    def announce(key: str) -> None:
        emit("running", key=key, limit_s=(ROW[key].compiling_s if key in ROW else 0) or None)

    for case, without in zip(cases, excluded, strict=True):
        if end is not None and time.perf_counter() > end:
            emit("dropped", case=case.to_dict(), threads=threads, why="out of time")
            continue
        emit("start", title=f"{case.title}, threads={threads}")
        set_precision(case.dtype)
        forget()
        told = {"announce": announce} if end is not None else {}
        result = time_case(case, request["contenders"], threads, without, **told, **timing())
        emit("result", **result, floor=measured[case.dtype].floor(case))
        remaining -= 1
    for case in scaling:
        emit("start", title=f"{case.title}, 1 thread and {threads}")
        try:
            known = timing()
            result = time_scaling(case, threads, **known | {"budget_s": max(known["budget_s"], SCALING_S)})
        except Unsupported:
            continue
        emit("scaling", **result)
        remaining -= 1


def main() -> None:
    request = json.loads(sys.stdin.readline())
    # The pipe is for events alone; what libraries print goes to stderr.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(event: str, **fields) -> None:
        events.write(json.dumps({"event": event, **fields}) + "\n")

    work(request, emit)


if __name__ == "__main__":
    main()
