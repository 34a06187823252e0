"""A worker under watch: what runs on a GPU for the first time may hang, or take its process with it.

The worker says whom it is about to run. Where it dies or falls silent, that contender is left out of the
case, and a new worker goes on from there; whoever has failed in a few cases is left out of all the others.
Nothing lasts beyond the time that the whole run has: cases that have not run by then are told.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence

from .cases import Case
from .contenders.registry import NAMES, TIERS, standard
from .process import Silent, Watched

#: Until a worker's first word: it imports torch, and CUDA begins.
START_S = 120.0
#: Silence after which something hangs: no sample of a case takes seconds.
SILENT_S = 20.0
#: Cases that a contender may fail in before it is left out of the others; fastrnn itself and its tiers, which
#: the run is about, in a few more.
STRIKES, OWN_STRIKES = 2, 4
#: A worker begins no case in the last seconds of its time: a large one takes as long.
GRACE_S = 8.0
#: Workers in a row that may die before they have got to any contender.
VAIN_STARTS = 2
COMMAND = (sys.executable, "-m", "benchmarks.lab.worker")


class Supervisor:
    """Runs a request of worker.work() to its end, and passes its events on.

    Every case ends in one event, "result" or "dropped", the latter with the reason ("why"). Nothing that a
    worker does raises here.

    Args:
        request: see run.py; its cases are done in their order.
        handle: gets each event.
        limit_s: seconds for everything.
        excluded: contenders that a case is run without from the start, and why.
    """

    def __init__(
        self,
        request: dict,
        handle: Callable[[dict], None],
        *,
        limit_s: float,
        environment: dict[str, str],
        excluded: dict[Case, dict[str, str]] | None = None,
        silent_s: float = SILENT_S,
        command: Sequence[str] = (),
    ):
        self.request, self.handle, self.environment = request, handle, environment
        self.silent_s, self.command = silent_s, command or COMMAND
        self.pending = [Case(**c) for c in request["cases"]]
        self.excluded = {c: dict((excluded or {}).get(c, {})) for c in self.pending}
        self.limits: list[dict] = []
        self.strikes: Counter = Counter()
        self.deadline = time.monotonic() + limit_s

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self) -> None:
        total, vain = len(self.pending), 0
        try:
            while self.pending and self.left > GRACE_S:
                before = len(self.pending)
                failure = self._watch(
                    self.request
                    | {
                        "cases": [c.to_dict() for c in self.pending],
                        "excluded": [self.excluded[c] for c in self.pending],
                        "limits": self.limits,
                        "budget_s": min(self.request["budget_s"] * before / total, 0.85 * self.left),
                        "limit_s": self.left - GRACE_S,
                    }
                )
                if failure is None:
                    break
                key, reason = failure
                vain = 0 if key or len(self.pending) < before else vain + 1
                self._leave_out(key, reason, in_vain=vain >= VAIN_STARTS)
        finally:
            while self.pending:
                self._drop("out of time" if self.left <= GRACE_S else "the run was stopped")

    def _drop(self, why: str) -> None:
        case = self.pending.pop(0)
        self.handle(
            {"event": "dropped", "case": case.to_dict(), "threads": self.request["threads"], "why": why}
        )

    def _leave_out(self, key: str | None, reason: str, in_vain: bool) -> None:
        """The consequence of a failure in the first case that is pending."""
        if not self.pending or self.left <= GRACE_S:
            return
        case = self.pending[0]
        if key == standard(case):  # nothing to compare with
            self._drop(f"{NAMES[key]}: {reason}")
        elif key is None:
            if in_vain:
                self._drop(reason)
        else:
            self.excluded[case][key] = reason
            self.strikes[key] += 1
            if self.strikes[key] >= (OWN_STRIKES if key in ("fastrnn", *TIERS) else STRIKES):
                why = f"failed in {self.strikes[key]} cases before: {reason}"
                for later in self.pending[1:]:
                    self.excluded[later].setdefault(key, why)

    def _watch(self, request: dict) -> tuple[str | None, str] | None:
        """One worker: None where it did all it was asked for, else whom it was running and what happened."""
        with (
            tempfile.TemporaryFile("w+") as log,
            Watched(self.command, self.environment, said=json.dumps(request) + "\n", log=log) as worker,
        ):
            key, patience = None, START_S
            try:
                while (line := worker.line(min(patience, self.left))) is not None:
                    event = json.loads(line)
                    if event["event"] == "running":
                        key, patience = event["key"], event.get("limit_s") or self.silent_s
                    else:
                        key, patience = None, self.silent_s
                        self._take(event)
            except Silent:
                return key, f"no end after {patience:.0f} s"
            code = worker.wait()
            if code is None:
                return key, "its process did not end"
            if code == 0:
                return None
            log.seek(0)
            return key, _reason(code, log.read())

    def _take(self, event: dict) -> None:
        if event["event"] == "limits":
            self.limits.append({k: v for k, v in event.items() if k not in ("event", "threads")})
        elif event["event"] in ("result", "dropped"):
            self.pending.pop(0)
        self.handle(event)


def _reason(code: int, log: str) -> str:
    """What a dead process leaves: its signal, or the last error that it wrote."""
    if code < 0:
        return f"its process died of {signal.Signals(-code).name}"
    said = [line.strip() for line in log.splitlines() if line.strip()]
    # CUDA's errors go on with advice.
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return [f"its process ended with {code}", *said[-1:], *errors[-1:]][-1][:300]
