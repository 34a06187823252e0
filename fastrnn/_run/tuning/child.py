"""Candidates of tuning in a process of their own, with a time limit: a session's runner."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..._plan.tuning import session
from ..._plan.tuning.kinds import Kind
from ..._plan.tuning.session import Chosen, Times, Verdict

#: Seconds that a candidate may take, and a child until it is ready: torch's import, a device's context, code
#: that is compiled for the device.
LIMIT_S, START_LIMIT_S = 60.0, 300.0


class Child:
    """Runs candidates in a child process, which serves until one of them ends it.

    Args:
        command: that serves as ``candidates.serve`` does, with the descriptor for its answers as last
        argument.
        limit_s: seconds for one candidate.
    """

    def __init__(
        self, command: Sequence[str], limit_s: float = LIMIT_S, start_limit_s: float = START_LIMIT_S
    ) -> None:
        self.command, self.limit_s, self.start_limit_s = list(command), limit_s, start_limit_s
        self._process: subprocess.Popen | None = None
        self._answers = -1
        self._read = b""

    def verify(self, kind: Kind, candidate: Chosen) -> Verdict:
        found = self._ask("verify", kind, [candidate], self.limit_s)
        return found if isinstance(found, Verdict) else Verdict(**found)

    def time(self, kind: Kind, chosen: Sequence[Chosen]) -> Times | Verdict:
        found = self._ask("time", kind, chosen, self.limit_s * (2 + len(chosen)))
        if isinstance(found, Verdict):
            return found
        make = session.candidate_of(kind)
        times = {make(*fields): us for *fields, us in found["candidates"]}
        return Times(times, found["stepwise"], found["torch"])

    def _ask(self, do: str, kind: Kind, chosen: Sequence[Chosen], limit_s: float) -> Verdict | dict:
        if self._process is None:
            problem = self._start()
            if problem:
                return problem
        job = {"do": do, "kind": dataclasses.asdict(kind), "candidates": [list(c) for c in chosen]}
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._answer(limit_s)
        except BrokenPipeError:
            answer = None
        except TimeoutError:
            self.close()
            return Verdict(False, "hang", f"no answer within {limit_s:g} s, and the process was ended")
        if answer is None:
            return Verdict(False, "crash", f"the process ended with {self._end()}")
        if "error" in answer:
            self.close()  # an error of the device may last
            return Verdict(False, "error", answer["error"])
        return answer

    def _start(self) -> Verdict | None:
        """A child that is ready, or why there is none: which is no fault of any candidate."""
        reading, writing = os.pipe()
        environment = os.environ | {"FASTRNN_TUNE": "off"}  # by name alone
        # The child imports the package that runs here, wherever it was started from.
        package = str(Path(__file__).parents[3])
        paths = [package, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        try:
            self._process = subprocess.Popen(
                [*self.command, str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[writing],
                env=environment,
            )
        except OSError as error:
            os.close(reading)
            return Verdict(False, "not run", f"no child process: {error}", ran=False)
        finally:
            os.close(writing)
        self._answers, self._read = reading, b""
        try:
            ready = self._answer(self.start_limit_s)
        except TimeoutError:
            self.close()
            return Verdict(False, "not run", f"no child was ready in {self.start_limit_s:g} s", ran=False)
        if ready is None:
            why = f"the child ended with {self._end()} before it was ready"
            return Verdict(False, "not run", why, ran=False)
        return None

    def _answer(self, limit_s: float) -> dict | None:
        """The next line, None where the process has ended."""
        end = time.monotonic() + limit_s
        while b"\n" not in self._read:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                return None
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def _end(self) -> str:
        """How a process ended that closed its answers."""
        try:
            status = self._process.wait(10)
        except subprocess.TimeoutExpired:
            status = None
        self.close()
        if status is None:
            return "its answers closed"
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"

    def close(self) -> None:
        """End the child, in whatever state it is."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        # A process that a driver holds may not die: it is left behind rather than waited for without end.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        os.close(self._answers)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def on_device(index: int, limit_s: float = LIMIT_S) -> Child:
    """A runner for a GPU of this process."""
    return Child([sys.executable, "-m", "fastrnn._run.tuning.candidates", f"cuda:{index}"], limit_s)
