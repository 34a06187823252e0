"""A whole benchmark run: a worker process for each number of threads, then memory; the result is one dict."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from fastrnn.proof import machine
from fastrnn.proof.timing import MIN_ROUNDS

from . import memory, targets
from .cases import Case
from .contenders.registry import KEYS, versions
from .process import Watched, environment
from .supervisor import COMMAND, Supervisor

#: progress(title, step): something new begins; step is 1 where a counted step has just ended, else 0.
Progress = Callable[[str, int], None]


@dataclass
class Plan:
    """What to run.

    Attributes:
        preset: its name, for the report.
        threads: numbers of threads, each with a worker process of its own.
        budget_s: seconds of timing on one number of threads; every contender still gets min_rounds, or three
            where the run is in a hurry.
        overhead: whether to time calls of modules against their operators (overhead.py).
        scan: whether to time SRU's recurrence alone against the rate of reading (scan_rate.py).
        kernels: whether to time the passes of layers alone against the machine's limits (kernel_rate.py).
        limit_s: seconds for all cases, or None. With it the run is supervised (supervisor.py): nothing that
            hangs or dies ends it, and cases that it has no time for are told.
        excluded: contenders that a case is run without, and why; of supervised runs.
        scaling_cases: run on one thread and on all of them. memory_cases: whose peak memory is measured.
    """

    preset: str
    cases: Sequence[Case]
    threads: Sequence[int]
    contenders: Sequence[str] = KEYS
    scaling_cases: Sequence[Case] = ()
    memory_cases: Sequence[Case] = ()
    memory_contenders: Sequence[str] = memory.CONTENDERS
    budget_s: float = 60.0
    limits_s: float = 2.0
    min_rounds: int = MIN_ROUNDS
    hurry: bool = False
    overhead: bool = False
    scan: bool = False
    kernels: bool = False
    limit_s: float | None = None
    excluded: dict[Case, dict[str, str]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Counted steps of the whole run."""
        each = sum(len(self.cases) + (len(self.scaling_cases) if n > 1 else 0) for n in self.threads)
        return each + len(self.memory_cases) * len(self.memory_contenders)


def _request(plan: Plan, threads: int) -> dict:
    """What a worker is asked for."""
    return {
        "cases": [c.to_dict() for c in plan.cases],
        "scaling": [c.to_dict() for c in plan.scaling_cases],
        "contenders": list(plan.contenders),
        "threads": threads,
        "budget_s": plan.budget_s,
        "limits_s": plan.limits_s,
        "min_rounds": plan.min_rounds,
        "hurry": plan.hurry,
        "overhead": plan.overhead,
        "scan": plan.scan,
        "kernels": plan.kernels,
    }


def _run_worker(plan: Plan, threads: int, handle: Callable[[dict], None]) -> None:
    """Run a worker to its end and pass on its events. RuntimeError with what it printed if it fails."""
    request = _request(plan, threads)
    with tempfile.TemporaryFile("w+") as log:
        with Watched(COMMAND, environment(threads), said=json.dumps(request) + "\n", log=log) as worker:
            while (line := worker.line(math.inf)) is not None:
                handle(json.loads(line))
            code = worker.wait(math.inf)
        if code != 0:
            log.seek(0)
            tail = "".join(log.readlines()[-20:])
            raise RuntimeError(f"the benchmark's worker on {threads} threads ended with {code}:\n{tail}")


def _measure_memory(plan: Plan, progress: Progress) -> list[dict]:
    """The contenders of a case side by side: memory, unlike time, does not mind company."""
    threads, measured = max(plan.threads), []
    for case in plan.memory_cases:
        progress(f"memory of {case.title}", 0)
        running = [(c, memory.spawn(case, c, threads)) for c in plan.memory_contenders]
        for contender, process in running:
            entry = {"case": case.to_dict(), "contender": contender, "threads": threads}
            try:
                measured.append({**entry, "bytes": memory.finish(process)})
            except RuntimeError as error:
                measured.append({**entry, "bytes": None, "error": str(error)})
            progress(f"memory of {case.title}", 1)
    return measured


#: Seconds between two states of a run that are kept.
SAVE_EVERY_S = 10.0


def with_targets(out: dict) -> dict:
    """A run with what follows from its results."""
    isa = out["machine"].get("isa") or ""
    out["targets"] = [line for n in out["threads"] for line in targets.evaluate(out["results"], n, isa)]
    out["absolute_targets"] = targets.evaluate_absolute(out)
    return out


def run(
    plan: Plan,
    progress: Progress = lambda title, step: None,
    save: Callable[[dict], None] = lambda out: None,
    line: Callable[[dict], None] = lambda event: None,
) -> dict:
    """Run everything. Returns what results.json holds: see report.py for how it is read.

    save: gets the run as it is now and then, so that nothing is lost where the process is killed.
    line: gets everything at once as it comes, see results.from_lines().
    A supervised run that is interrupted returns what it has.
    """
    started = saved = time.perf_counter()
    out: dict = {
        "format": 1,
        "preset": plan.preset,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "load": machine.load(),
        "versions": versions(),
        "threads": list(plan.threads),
        "min_rounds": plan.min_rounds,
        "limits": [],
        "results": [],
        "scaling": [],
        "overhead": [],
        "scan": [],
        "kernels": [],
        "crowd": [],
        "dropped": [],
        "memory": [],
    }
    line({"event": "run", **out})

    def complete() -> dict:
        return with_targets(out) | {"seconds": round(time.perf_counter() - started, 1)}

    def handle(event: dict) -> None:
        nonlocal saved
        kind = event["event"]
        if kind != "start":
            line(event)
        event = {name: value for name, value in event.items() if name != "event"}
        if kind == "start":
            progress(event["title"], 0)
        elif kind in ("limits", "overhead", "scan", "kernels", "crowd"):
            out[kind].append(event)
        else:
            out["results" if kind == "result" else kind].append(event)
            progress("", 1)
            if time.perf_counter() - saved > SAVE_EVERY_S:
                saved = time.perf_counter()
                save(complete())

    for threads in plan.threads:
        if plan.limit_s is None:
            _run_worker(plan, threads, handle)
            continue
        supervisor = Supervisor(
            _request(plan, threads),
            handle,
            limit_s=plan.limit_s,
            environment=environment(threads),
            excluded=plan.excluded,
        )
        with contextlib.suppress(KeyboardInterrupt):
            supervisor.run()
    out["memory"] = _measure_memory(plan, progress)
    finished = complete()
    line({"event": "done", "memory": out["memory"], "seconds": finished["seconds"]})
    return finished
