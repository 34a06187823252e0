"""Tuning itself: verify every candidate of a kind, time those that are right, keep what was found.

Who runs a candidate is somebody else (``Runner``): a child process on a GPU, and in tests whatever may go
wrong. Here it is seen to that nothing is launched before the cache says that it is about to be: a candidate
that takes the process or the machine with it is found "running" by the next one, and that is quarantine.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from .. import gpus
from . import cache, decide, identity
from .kinds import Candidate, Kind, candidates


class Verdict(NamedTuple):
    """What became of a candidate. ok: right at both shapes, with equal bits when run again. what: of one
    that is not, "wrong numbers", "NaN", "different bits", "hang", "crash" or "error"; why: the same with
    what was seen.
    ran: False where nothing could be tried, which says nothing about the candidate.
    """

    ok: bool
    what: str = ""
    why: str = ""
    ran: bool = True

    @property
    def text(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what


class Times(NamedTuple):
    """Medians in microseconds. candidates: of those that were timed. stepwise: of the stepwise tier, by pass.
    torch: of all passes of torch's own layer, None where it cannot."""

    candidates: Mapping[Candidate, float]
    stepwise: Mapping[str, float]
    torch: float | None


class Runner(Protocol):
    """Runs candidates on a device. Whatever happens is an answer: it raises nothing but KeyboardInterrupt."""

    def verify(self, kind: Kind, candidate: Candidate) -> Verdict: ...

    def time(self, kind: Kind, chosen: Sequence[Candidate]) -> Times | Verdict:
        """A verdict where the timing did not end well: of the first of the chosen if there is but one."""


class Outcome(NamedTuple):
    """A kind's record, as the cache has it."""

    kind: Kind
    record: dict


#: Told of every candidate before it runs, and of what became of it: title, steps done.
Progress = Callable[[str, int], None]


class Session:
    """Tuning of kinds on one device.

    Args:
        store: the cache. device: its identity. gpu: what the planner looks at. runner: who runs candidates.
        timed: whether what is right is also timed; without, nothing new will run by default.
        again: whether kinds and candidates with an outcome are tried again, those in quarantine too.
    """

    def __init__(
        self,
        store: cache.Cache,
        device: dict[str, str],
        gpu: gpus.Gpu,
        runner: Runner,
        *,
        timed: bool = True,
        again: bool = False,
    ) -> None:
        self.store, self.device, self.gpu, self.runner = store, device, gpu, runner
        self.timed, self.again = timed, again
        self.name = identity.text(device)

    def steps(self, kinds: Iterable[Kind]) -> int:
        """For a progress bar."""
        return sum(len(list(candidates(kind, self.gpu))) + self.timed for kind in kinds)

    def run(self, kinds: Iterable[Kind], advance: Progress = lambda _title, _steps: None) -> list[Outcome]:
        """Tune each kind; a kind's outcome is in the cache before the next begins."""
        return [self._tune(kind, advance) for kind in kinds]

    def _tune(self, kind: Kind, advance: Progress) -> Outcome:
        chosen = list(candidates(kind, self.gpu))
        right = []
        for candidate in chosen:
            advance(f"{kind.key}: {candidate.name}", 0)
            if self._verified(kind, candidate):
                right.append(candidate)
            advance("", 1)
        if self.timed:
            advance(f"{kind.key}: times", 0)
            self._time(kind, right)
            advance("", 1)
        return Outcome(kind, self._record(kind))

    def _verified(self, kind: Kind, candidate: Candidate) -> bool:
        known = self._record(kind).get("candidates", {}).get(candidate.name, {})
        state, why = cache.candidate_state(known)
        if state == cache.QUARANTINED and not self.again:
            self._note(kind, candidate, state, why)  # "running" too has its name now
            return False
        if state == cache.VERIFIED and not self.again:
            return True
        self._note(kind, candidate, cache.RUNNING, "")
        try:
            verdict = self.runner.verify(kind, candidate)
        except BaseException:  # an interrupt says nothing about the candidate
            self._note(kind, candidate, cache.NOT_RUN, "interrupted")
            raise
        self._judge(kind, candidate, verdict)
        return verdict.ok

    def _judge(self, kind: Kind, candidate: Candidate, verdict: Verdict) -> None:
        state = cache.VERIFIED if verdict.ok else cache.QUARANTINED if verdict.ran else cache.NOT_RUN
        self._note(kind, candidate, state, verdict.text)

    def _time(self, kind: Kind, right: list[Candidate]) -> None:
        """The tiers that are worth it. One that hangs or crashes now takes no other with it: the rest is
        timed again, one by one to find it."""
        times = self._timed(kind, right)
        if isinstance(times, Verdict):
            good = []
            for candidate in right:
                alone = self._timed(kind, [candidate])
                if isinstance(alone, Verdict):
                    self._judge(kind, candidate, alone)
                else:
                    good.append(candidate)
            times = self._timed(kind, good)
        if isinstance(times, Verdict):
            self._change(kind, lambda record: record.update(why=f"not timed: {times.text}"))
            return
        useful = {}
        for candidate, us in times.candidates.items():
            if why := decide.slow(candidate.which, us, times.stepwise[candidate.which]):
                self._note(kind, candidate, cache.QUARANTINED, why, us)
            else:
                useful[candidate] = us
                self._note(kind, candidate, cache.VERIFIED, "", us)
        forward, backward, why = decide.decide(kind, useful, times.stepwise, times.torch)

        def decided(record: dict) -> None:
            record["forward"] = forward
            if kind.training:
                record["backward"] = backward
            record["why"] = why
            record["us"] = {"torch": times.torch, **{f"stepwise {w}": us for w, us in times.stepwise.items()}}

        self._change(kind, decided)

    def _timed(self, kind: Kind, chosen: Sequence[Candidate]) -> Times | Verdict:
        for candidate in chosen:
            self._note(kind, candidate, cache.RUNNING, "")
        found: Times | Verdict | None = None
        try:
            found = self.runner.time(kind, chosen)
        finally:
            why = "interrupted" if found is None else ""
            for candidate in chosen:
                self._note(kind, candidate, cache.VERIFIED, why)
        return found

    def _record(self, kind: Kind) -> dict:
        return self.store.read()["devices"].get(self.name, {}).get("kinds", {}).get(kind.key, {})

    def _change(self, kind: Kind, change: Callable[[dict], None]) -> None:
        def changed(document: dict) -> None:
            kinds = cache.device_of(document, self.name, self.device)["kinds"]
            record = kinds.setdefault(kind.key, {"candidates": {}})
            record["shape"] = {"cell": kind.cell, "T": kind.T, "B": kind.B, "I": kind.I, "H": kind.H}
            record["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            change(record)

        self.store.update(changed)

    def _note(self, kind: Kind, candidate: Candidate, state: str, why: str, us: float | None = None) -> None:
        entry = {"state": state, "why": why} | ({} if us is None else {"us": round(us, 2)})
        self._change(kind, lambda record: record["candidates"].update({candidate.name: entry}))
