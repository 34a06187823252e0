"""A call without a GPU: its own steps and files, a made-up clock, and processes that only act.

Once "well" (every step takes half of its time and says what such a step says), once "hang" (nobody ends, nor
dies when killed) and once "crash" (everybody dies of a signal, the last moment before its time is over). No
line holds a time or a number that could be taken for a measured one, and `dry_run` in the first says what it
is: record.py takes nothing from such a file.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import calls
from stages import Stage, Step

SCENARIOS = ("well", "hang", "crash")


class Clock:
    """Seconds that pass when somebody waits."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Actor:
    """A step's process that does nothing.

    Args:
        ends_s: after so many seconds it ends with `code`; None: never, whatever it is sent.
        says: its lines.
    """

    def __init__(self, clock: Clock, ends_s: float | None, code: int = 0, says: tuple[str, ...] = ()) -> None:
        self.clock, self.start, self.ends_s, self.ended = clock, clock.now(), ends_s, code
        self._says = list(says)
        self.signals: list[int] = []

    def said(self) -> Iterator[str]:
        while self._says:
            yield self._says.pop(0)

    @property
    def code(self) -> int | None:
        over = self.ends_s is not None and self.clock.now() - self.start >= self.ends_s
        return self.ended if over else None

    def signal(self, number: int) -> None:
        self.signals.append(number)


def said_by(step: Step) -> list[dict]:
    """The lines that such a step writes."""
    kind, _, what = step.name.partition(" ")
    if kind == "facts":
        return [{"event": "facts", "machine": {"devices": []}, "versions": {}, "build": {}}]
    if kind == "sweep":
        return [{"event": "dropped", "case": {}, "threads": 1, "why": "a dry run"}]
    if kind in ("latency", "tune"):
        return [{"event": "left", "left": {}}]
    return [{"event": "outcome", "name": f"{what}: a dry run", "outcome": "ok"}]


def launcher(scenario: str, clock: Clock, lines_of):
    """In place of stages.launch. lines_of(step): writes for a step."""

    def launch(step: Step, seconds: float, environment: dict[str, str]) -> Actor:
        if scenario == "hang":
            return Actor(clock, None)
        if scenario == "crash":
            return Actor(clock, seconds - 0.05, -signal.SIGSEGV)
        for entry in said_by(step):
            lines_of(environment).write(entry.pop("event"), **entry)
        return Actor(clock, seconds / 2, says=(f"{step.name} would run {' '.join(step.told(seconds))}\n",))

    return launch


def without_vital(stages: list[Stage]) -> list[Stage]:
    """The longest way: nothing is skipped because something failed."""
    return [
        Stage(
            [Step(s.name, s.command or ["absent"], s.environment, s.margin_s) for s in stage.steps],
            stage.least_s,
            stage.limit_s,
        )
        for stage in stages
    ]


def lines_of(environment: dict[str, str]):
    from lines import Lines

    path, began = Path(environment["FASTRNN_GPU_LINES"]), float(environment["FASTRNN_GPU_BEGAN"])
    return Lines(path, began, environment["FASTRNN_GPU_STEP"])


def main(call: int, out: Path, commit: str | None, play, table) -> int:
    """Play all scenarios; 1 where one takes longer than the call may. play, table: check.py's."""
    late = False
    for scenario in SCENARIOS:
        clock, stages = Clock(), list(calls.stages(call, out))
        run = play(
            call,
            out,
            stages if scenario == "well" else without_vital(stages),
            commit=commit,
            dry=scenario,
            launch=launcher(scenario, clock, lines_of),
            clock=clock,
            show=False,
        )
        late = late or clock.now() > calls.LIMIT_S[call]
        if scenario == "well":
            print(table(run))
        print(f"call {call}, {scenario}: {clock.now():.0f} of {calls.LIMIT_S[call]:.0f} s")
    return int(late)
