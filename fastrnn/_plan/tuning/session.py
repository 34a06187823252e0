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
from . import cache, decide, identity, stacks
from .kinds import Candidate, Kind, candidates
from .stacks import Wave

#: What is verified and timed: a tier for one pass of a layer, or a wavefront of a stack.
Chosen = Candidate | Wave


def candidate_of(kind: Kind) -> type[Candidate] | type[Wave]:
    """What a kind's candidates are made by, of the fields that they are told by."""
    return Wave if kind.layers > 1 else Candidate


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
    """Medians in microseconds. candidates: of those that were timed; of a wavefront all passes together.
    stepwise: of the stepwise tier, by pass; nothing for a stack. torch: of all passes of torch's own layers,
    None where they cannot."""

    candidates: Mapping[Chosen, float]
    stepwise: Mapping[str, float]
    torch: float | None


class Runner(Protocol):
    """Runs candidates on a device. Whatever happens is an answer: it raises nothing but KeyboardInterrupt."""

    def verify(self, kind: Kind, candidate: Chosen) -> Verdict: ...

    def time(self, kind: Kind, chosen: Sequence[Chosen]) -> Times | Verdict:
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
        return sum(self._most(kind) + self.timed for kind in kinds)

    def _most(self, kind: Kind) -> int:
        """How many candidates there can be: which wavefronts a stack has is known when its layers are."""
        return len(stacks.PIECES) if kind.layers > 1 else len(list(candidates(kind, self.gpu)))

    def _candidates(self, kind: Kind) -> list[Chosen]:
        if kind.layers > 1:
            return list(stacks.candidates(kind, self._records(), self.gpu))
        return list(candidates(kind, self.gpu))

    def run(self, kinds: Iterable[Kind], advance: Progress = lambda _title, _steps: None) -> list[Outcome]:
        """Tune each kind; a kind's outcome is in the cache before the next begins."""
        return [self._tune(kind, advance) for kind in kinds]

    def _tune(self, kind: Kind, advance: Progress) -> Outcome:
        chosen = self._candidates(kind)
        right: list[Chosen] = []
        for candidate in chosen:
            advance(f"{kind.key}: {candidate.name}", 0)
            if self._verified(kind, candidate):
                right.append(candidate)
            advance("", 1)
        advance("", self._most(kind) - len(chosen))
        if self.timed:
            advance(f"{kind.key}: times", 0)
            if chosen or kind.layers == 1:
                self._time(kind, right)
            else:
                self._decided(kind, stacks.LAYERS, stacks.LAYERS, why="no wavefront could run")
            advance("", 1)
        return Outcome(kind, self._record(kind))

    def _verified(self, kind: Kind, candidate: Chosen) -> bool:
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

    def _judge(self, kind: Kind, candidate: Chosen, verdict: Verdict) -> None:
        state = cache.VERIFIED if verdict.ok else cache.QUARANTINED if verdict.ran else cache.NOT_RUN
        self._note(kind, candidate, state, verdict.text)

    def _time(self, kind: Kind, right: list[Chosen]) -> None:
        """The candidates that are worth it. One that hangs or crashes now takes no other with it: the rest is
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
        (self._decide_stack if kind.layers > 1 else self._decide)(kind, times)

    def _decide(self, kind: Kind, times: Times) -> None:
        useful = {
            candidate: us
            for candidate, us in times.candidates.items()
            if self._worth(
                kind, candidate, us, decide.slow(candidate.which, us, times.stepwise[candidate.which])
            )
        }
        forward, backward, why = decide.decide(kind, useful, times.stepwise, times.torch)
        us = {"torch": times.torch, **{f"stepwise {w}": us for w, us in times.stepwise.items()}}
        self._decided(kind, forward, backward, why=why, us=us)

    def _decide_stack(self, kind: Kind, times: Times) -> None:
        whole = stacks.whole(kind, self._records(), self.gpu)
        whole_us = times.candidates[whole]
        useful = {
            wave: us
            for wave, us in times.candidates.items()
            if wave != whole and self._worth(kind, wave, us, stacks.slow(us, whole_us))
        }
        won, why = stacks.decided(useful, whole_us, times.torch)
        us = {"torch": times.torch, whole.name: whole_us}
        if isinstance(won, Wave):
            more = stacks.record_of(kind, won)
            self._decided(kind, won.tier, won.tier, why=why, us=us, **more)
        else:
            self._decided(kind, won, won, why=why, us=us)

    def _worth(self, kind: Kind, candidate: Chosen, us: float, slow: str) -> bool:
        """Keep its time, and what it means if it is slow."""
        self._note(kind, candidate, cache.QUARANTINED if slow else cache.VERIFIED, slow, us)
        return not slow

    def _decided(self, kind: Kind, forward: str, backward: str, **more: object) -> None:
        def change(record: dict) -> None:
            for old in stacks.FIELDS:
                record.pop(old, None)
            record["forward"] = forward
            if kind.training:
                record["backward"] = backward
            record.update(more)

        self._change(kind, change)

    def _timed(self, kind: Kind, chosen: Sequence[Chosen]) -> Times | Verdict:
        beside = [stacks.whole(kind, self._records(), self.gpu)] if kind.layers > 1 else []
        for candidate in chosen:
            self._note(kind, candidate, cache.RUNNING, "")
        found: Times | Verdict | None = None
        try:
            found = self.runner.time(kind, [*beside, *chosen])
        finally:
            why = "interrupted" if found is None else ""
            for candidate in chosen:
                self._note(kind, candidate, cache.VERIFIED, why)
        return found

    def _record(self, kind: Kind) -> dict:
        return self._records().get(kind.key, {})

    def _records(self) -> dict[str, dict]:
        return self.store.read()["devices"].get(self.name, {}).get("kinds", {})

    def _change(self, kind: Kind, change: Callable[[dict], None]) -> None:
        def changed(document: dict) -> None:
            kinds = cache.device_of(document, self.name, self.device)["kinds"]
            record = kinds.setdefault(kind.key, {"candidates": {}})
            record["shape"] = {"cell": kind.cell, "T": kind.T, "B": kind.B, "I": kind.I, "H": kind.H}
            record["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            change(record)

        self.store.update(changed)

    def _note(self, kind: Kind, candidate: Chosen, state: str, why: str, us: float | None = None) -> None:
        entry = {"state": state, "why": why} | ({} if us is None else {"us": round(us, 2)})
        self._change(kind, lambda record: record["candidates"].update({candidate.name: entry}))
