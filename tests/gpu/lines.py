"""What a call of check.py has found, as it comes: JSON objects, a line each, in a file that whoever is
killed leaves.

check.py and the processes that it starts append to the same file, whose path they have in FASTRNN_GPU_LINES;
where that is not set nothing is written. Every line has "event", "at" (seconds since the call began) and,
of a process, "step":
    call      number, commit, pack, limit_s, dry_run: the first
    step      a step's "status": "running", then "ok", "failed", "hung", "absent" or "skipped"
    facts     machine and versions
    outcome   "name" and "outcome": "running", then "ok", or what is wrong; the last of a name counts
    left      what a step left as a file, in "left"
    run, limits, result, dropped, done   those of benchmarks.lab
    end       "ok": the call came to its end
As a pytest plugin (-p lines) it writes an outcome for each test, and begins none in the last seconds of the
FASTRNN_GPU_SECONDS that its process has: those are "not run".
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path


class Lines:
    """Appends to a file, every line in one piece and at once: several processes may."""

    def __init__(self, path: Path, began: float, step: str = "") -> None:
        self.path, self.began, self.step = path, began, step

    def write(self, event: str, **fields) -> None:
        entry = {"event": event, "at": round(time.time() - self.began, 2)}
        if self.step:
            entry["step"] = self.step
        with self.path.open("ab", buffering=0) as file:
            file.write((json.dumps(entry | fields) + "\n").encode())

    def environment(self, step: str) -> dict[str, str]:
        """For a process that writes here too."""
        return {
            "FASTRNN_GPU_LINES": str(self.path),
            "FASTRNN_GPU_BEGAN": repr(self.began),
            "FASTRNN_GPU_STEP": step,
        }


def write(event: str, **fields) -> None:
    """A line of this process'."""
    path = os.environ.get("FASTRNN_GPU_LINES")
    if path:
        began = float(os.environ.get("FASTRNN_GPU_BEGAN", time.time()))
        Lines(Path(path), began, os.environ.get("FASTRNN_GPU_STEP", "")).write(event, **fields)


def read(path: Path) -> Iterator[dict]:
    """The lines of a file; the last one may be half written.

    Raises:
        ValueError: another line is no JSON object with an "event".
    """
    texts = path.read_text().splitlines()
    for number, text in enumerate(texts, 1):
        try:
            entry = json.loads(text)
        except ValueError:
            if number == len(texts):
                return
            raise ValueError(f"{path}, line {number}: expected JSON, got {text[:60]!r}") from None
        if not isinstance(entry, dict) or "event" not in entry:
            raise ValueError(f"{path}, line {number}: expected an object with an event, got {text[:60]!r}")
        yield entry


#: Seconds that a test and pytest's own end may take.
ENDING_S = 10.0
OUT_OF_TIME = "out of time"
_deadline = time.monotonic() + float(os.environ.get("FASTRNN_GPU_SECONDS", "inf")) - ENDING_S


def pytest_runtest_setup(item):
    if time.monotonic() > _deadline:
        import pytest  # other processes write lines without it

        pytest.skip(OUT_OF_TIME)


def pytest_runtest_logstart(nodeid, location):
    write("outcome", name=nodeid, outcome="running")


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        outcome = {"passed": "ok", "skipped": "skipped"}.get(report.outcome)
        if report.outcome == "skipped" and OUT_OF_TIME in report.longreprtext:
            outcome = "not run"
        if report.outcome == "failed":
            said = [line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
            outcome = f"failed: {said[0] if said else report.when}"[:300]
        write("outcome", name=report.nodeid, outcome=outcome)
