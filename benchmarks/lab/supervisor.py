"""A worker under watch: what runs on a GPU for the first time may hang, or take its process with it.

The worker says whom it is about to run. Where it dies or falls silent, that contender is left out of the
case, and a new worker goes on from there; whoever has failed in a few cases is left out of all the others.
Nothing lasts beyond the time that the whole run has: cases that have not run by then are told.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from .cases import Case
from .contenders.registry import NAMES, TIERS, standard

#: Until a worker's first word: it imports torch, and CUDA begins.
START_S = 120.0
#: Silence after which something hangs: no sample of a case takes seconds.
SILENT_S = 20.0
#: Until a process is gone that has no more to say, or is killed.
END_S = 20.0
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
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # its compilers end with it
            )
            lines: queue.Queue[str | None] = queue.Queue()

            def read():
                for line in process.stdout:
                    lines.put(line)
                lines.put(None)

            threading.Thread(target=read, daemon=True).start()
            key, patience = None, START_S
            try:
                with contextlib.suppress(BrokenPipeError):  # it is dead already: its output says why
                    process.stdin.write(json.dumps(request) + "\n")
                    process.stdin.close()
                while True:
                    try:
                        line = lines.get(timeout=max(0.0, min(patience, self.left)))
                    except queue.Empty:
                        if process.poll() is None:
                            return key, f"no end after {patience:.0f} s"
                        break  # something that it started holds the pipe open
                    if line is None:
                        break
                    event = json.loads(line)
                    if event["event"] == "running":
                        key, patience = event["key"], event.get("limit_s") or self.silent_s
                        continue
                    key, patience = None, self.silent_s
                    self._take(event)
                try:
                    code = process.wait(timeout=END_S)
                except subprocess.TimeoutExpired:
                    return key, "its process did not end"
            finally:
                _end(process)
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


def _end(process: subprocess.Popen) -> None:
    """Kill a worker and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # What waits for a GPU that does not answer may not end at all; its pipe is left to it.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=END_S)
        process.stdout.close()


def _reason(code: int, log: str) -> str:
    """What a dead process leaves: its signal, or the last error that it wrote."""
    if code < 0:
        return f"its process died of {signal.Signals(-code).name}"
    said = [line.strip() for line in log.splitlines() if line.strip()]
    # CUDA's errors go on with advice.
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return [f"its process ended with {code}", *said[-1:], *errors[-1:]][-1][:300]
