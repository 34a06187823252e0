"""Runs a call's steps so that it ends in time, whatever they do: no torch in here, and no clock of its own.

A call is a list of stages, a stage some steps that run at the same time, each a process of its own. A stage
that is done early lends its time to those behind it, and none takes what they need at least; what runs into
its end is asked to end, then killed, then left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the laboratory
from benchmarks.lab.process import Silent, Watched  # noqa: E402

#: Seconds from the request to end until a process is killed, and from there until nobody waits for it.
GRACE_S, KILL_S = 1.0, 0.5
#: Between two looks at what runs.
LOOK_S = 0.1
#: What a stage may take beyond its time.
ENDING_S = GRACE_S + KILL_S + 0.3


@dataclass(frozen=True, eq=False)
class Step:
    """A command of a call.

    Attributes:
        command: None where what it needs is not here. "{seconds}" in it is the time that it was given.
        margin_s: how much less than that it is told.
        left: a JSON file that it leaves; it becomes a line, also of a step that was killed.
        after: the name of a step; where that one hung or crashed, this one would too.
    """

    name: str
    command: Sequence[str] | None
    environment: dict[str, str] = field(default_factory=dict)
    margin_s: float = 0.0
    left: Path | None = None
    after: str = ""

    def told(self, seconds: float) -> list[str]:
        return [w.replace("{seconds}", f"{seconds - self.margin_s:.0f}") for w in self.command or ()]


@dataclass(frozen=True)
class Stage:
    """Steps that run at once. least_s: that they need. limit_s: that they take at most. vital: without it
    nothing else is worth while."""

    steps: Sequence[Step]
    least_s: float
    limit_s: float
    vital: bool = False


class Running(Protocol):
    def said(self) -> Iterator[str]: ...
    @property
    def code(self) -> int | None: ...
    def signal(self, number: int) -> None: ...


class Clock:
    """The real one."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


class Process:
    """A step's process, in a session of its own."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._watched = Watched(command, environment, folder=ROOT)

    def said(self) -> Iterator[str]:
        """What it has said since the last time."""
        with contextlib.suppress(Silent):
            while (line := self._watched.line(0.0)) is not None:
                yield line

    @property
    def code(self) -> int | None:
        return self._watched.code

    def signal(self, number: int) -> None:
        self._watched.signal(number)


def launch(step: Step, seconds: float, environment: dict[str, str]) -> Running:
    folders = [ROOT, ROOT / "tests", ROOT / "tests" / "gpu", os.environ.get("PYTHONPATH")]
    own = {"PYTHONPATH": os.pathsep.join(str(f) for f in folders if f), "PYTHONUNBUFFERED": "1"}
    own["FASTRNN_GPU_SECONDS"] = f"{seconds:.0f}"
    return Process(step.told(seconds), os.environ | own | environment | step.environment)


def needed(stages: Sequence[Stage]) -> float:
    """Seconds within which stages can be done, where each has what it needs at least."""
    return sum(stage.least_s + ENDING_S for stage in stages)


class Call:
    """Runs stages within limit_s.

    Args:
        lines: gets what is found. log: what processes say.
        launch: starts a step with the seconds it has and an environment. clock: the time.

    Attributes:
        statuses: of the steps.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        limit_s: float,
        lines,
        log: Callable[[str], None] = lambda text: None,
        launch: Callable[[Step, float, dict[str, str]], Running] = launch,
        clock=Clock,
    ) -> None:
        if needed(stages) > limit_s:
            raise ValueError(f"the stages need {needed(stages):.0f} s at least, and there are {limit_s:.0f}")
        self.stages, self.lines, self.log, self.launch, self.clock = list(stages), lines, log, launch, clock
        self.deadline = clock.now() + limit_s
        self.statuses: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self._crashed: set[str] = set()

    def run(self) -> bool:
        """Whether everything was ok; what is absent is no failure."""
        for number, stage in enumerate(self.stages):
            left = self.deadline - self.clock.now()
            self._stage(stage, min(stage.limit_s, left - ENDING_S - needed(self.stages[number + 1 :])))
            if stage.vital and any(self.statuses[s.name] != "ok" for s in stage.steps):
                for later in self.stages[number + 1 :]:
                    for step in later.steps:
                        self._end(step, "skipped", 0.0, why=f"{stage.steps[0].name} failed")
                break
        return all(status in ("ok", "absent") for status in self.statuses.values())

    def _stage(self, stage: Stage, seconds: float) -> None:
        start = self.clock.now()
        running: dict[Step, Running] = {}
        try:
            for step in stage.steps:
                if step.command is None:
                    self._end(step, "absent", 0.0, why="what it needs is not here")
                elif step.after in self._crashed or self.statuses.get(step.after) in ("hung", "skipped"):
                    self._end(step, "skipped", 0.0, why=f"{step.after} {self.statuses[step.after]}")
                else:
                    self.log(f"== {step.name}, {seconds:.0f} s\n")
                    self.lines.write("step", step=step.name, status="running", limit_s=round(seconds, 1))
                    running[step] = self.launch(step, seconds, self.lines.environment(step.name))
            self._watch(running, start, seconds)
        finally:
            for process in running.values():  # where this process is ended
                process.signal(signal.SIGKILL)

    def _watch(self, running: dict[Step, Running], start: float, seconds: float) -> None:
        asked = killed = False
        while running:
            passed = self.clock.now() - start
            for step, process in list(running.items()):
                code = process.code
                for line in process.said():
                    self.log(f"{step.name}: {line}")
                if code is not None:
                    process.signal(signal.SIGKILL)  # what it has left behind
                    self._ended(step, code, passed, asked)
                    del running[step]
                elif passed >= seconds + GRACE_S + KILL_S:
                    self._end(step, "hung", passed, why="it does not die")
                    del running[step]
            if running and passed >= seconds and not asked:
                asked = True
                for process in running.values():
                    process.signal(signal.SIGTERM)
            elif running and passed >= seconds + GRACE_S and not killed:
                killed = True
                for process in running.values():
                    process.signal(signal.SIGKILL)
            if running:
                self.clock.sleep(LOOK_S)

    def _ended(self, step: Step, code: int, passed: float, asked: bool) -> None:
        if asked:
            self._end(step, "hung", passed, why="out of time")
        elif code == 0:
            self._end(step, "ok", passed)
        elif code < 0:
            self._crashed.add(step.name)
            self._end(step, "failed", passed, why=f"died of {signal.Signals(-code).name}")
        else:
            self._end(step, "failed", passed, exit=code)

    def _end(self, step: Step, status: str, seconds: float, **more) -> None:
        if step.left is not None and step.left.exists():
            try:
                self.lines.write("left", step=step.name, left=json.loads(step.left.read_text()))
                step.left.unlink()
            except ValueError as error:  # it was ended while it wrote: the file stays for who wants to look
                more["why"] = f"{step.left.name} is broken: {error}"
        self.statuses[step.name], self.seconds[step.name] = status, seconds
        self.lines.write("step", step=step.name, status=status, seconds=round(seconds, 1), **more)
        said = ", ".join(str(value) for value in more.values())
        self.log(f"== {step.name}: {status}{f' ({said})' if said else ''}, {seconds:.1f} s\n")
