"""What this process knows of each of its GPUs: for the Python in front of a call, and for C++'s planner.

A device is looked up once, when a layer is first called on it: the user's cache first, then the tables that
ship with the package. C++ is handed the same lines that are asked here, so that both say the same; and what
C++ puts in quarantine while a program runs finds its way back to the cache.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Mapping

import torch

from ..._ops import cuda, torch_state
from . import cache, decide, identity, stacks
from .kinds import TIERS, Kind, Stack, of_stack
from .stacks import Wave

UNVERIFIED = "not verified on this device: run `fastrnn tune`"
MODES = ("off", "verified", "on")

#: Says when anything was learnt. A string, on which compiled graphs put a guard: they are made anew then.
generation = "0"


def mode() -> str:
    """FASTRNN_TUNE: "off", nothing is known; "verified", what the cache and the shipped tables say; "on",
    kinds of layers that are new are tuned at their first call."""
    asked = os.environ.get("FASTRNN_TUNE") or "verified"
    if asked not in MODES:
        _warn_of_mode(asked)
        return "verified"
    return asked


_warned: set[str] = set()


def _warn_of_mode(asked: str) -> None:
    if asked not in _warned:
        _warned.add(asked)
        warnings.warn(
            f"FASTRNN_TUNE: expected one of {', '.join(MODES)}, got {asked!r}; taken for 'verified'",
            RuntimeWarning,
            stacklevel=4,
        )


class Device:
    """A GPU's outcomes. entries: for each kind of layer the tiers of forward and backward, "torch" for
    torch's own layer. stacks: for each kind of stacked layers the wavefront that is faster, "torch", or
    "layers" where each layer's kind has the word."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.entries: dict[str, tuple[str, str]] = {}
        self.stacks: dict[str, Wave | str] = {}
        self._of_pieces: dict[str, list[str]] = {}  # of a stack, what the planner calls its layers' pieces
        self.quarantined: dict[str, str] = {}
        self.known: dict = {}  # kinds of the calls that were made, for who asks again and again
        self.saved: set[str] = set()  # of the quarantined, those that the cache has

    def read(self) -> None:
        if mode() == "off":
            return
        try:
            device = identity.of(self.index)
        except (RuntimeError, AssertionError):  # a device on paper
            return
        name = identity.text(device)
        for document in cache.shipped():
            for table in document["devices"].values():
                if identity.covers(table.get("device", {}), device):
                    self._take(table)
        self._take(store().read()["devices"].get(name, {}))
        self.saved = set(self.quarantined)
        self._take({"kinds": _adopted.get(self.index, {})})

    def _take(self, table: dict) -> None:
        records = table.get("kinds", {})
        for key, record in records.items():
            if "forward" not in record:  # verified, never timed
                continue
            if " L=" in key:
                self._take_stack(key, record, records)
                continue
            tiers = record["forward"], record.get("backward", "stepwise")
            passes = ("forward", "backward") if " training" in key else ("forward",)
            if all(_proven(record, tier, which) for tier, which in zip(tiers, passes, strict=False)):
                self.entries[key] = tiers
            else:
                self.entries.pop(key, None)  # the user's cache has the last word
        self.quarantined |= table.get("quarantined", {})

    def _take_stack(self, key: str, record: dict, records: dict[str, dict]) -> None:
        won = record["forward"]
        if won not in (decide.TORCH, stacks.LAYERS):
            won = stacks.trusted(record, records)
        self._of_pieces.pop(key, None)
        if won is None:
            self.stacks.pop(key, None)
            return
        self.stacks[key] = won
        if isinstance(won, Wave):
            self._of_pieces[key] = record["pieces"]

    def lines(self, also: Mapping[str, tuple[str, str]] | None = None) -> str:
        """As csrc/plan/trust.h reads them. What a wavefront's pieces run has been verified as such, and is
        none of those where torch's own layer is the better choice: it is said of those alone of which there
        is nothing else to say. also: entries that have the last word."""
        known = {
            key: wave.passes
            for stack, wave in self.stacks.items()
            if isinstance(wave, Wave)
            for key in self._of_pieces.get(stack, ())
        }
        known |= {
            k: tiers for k, tiers in self.entries.items() if k not in known or decide.TORCH not in tiers
        }
        tiers = {decide.TORCH: "auto"}
        return "".join(
            f"{key}\t{tiers.get(forward, forward)}\t{tiers.get(backward, backward)}\n"
            for key, (forward, backward) in (known | dict(also or {})).items()
        )

    def proven(self) -> dict[str, tuple[str, str]]:
        """For a reader: by kind what runs its passes, of stacks "wavefront_8" and so on."""
        return self.entries | {
            key: (won.tier, won.tier) if isinstance(won, Wave) else (won, won)
            for key, won in self.stacks.items()
        }

    def hand_over(self) -> None:
        cuda.trust(self.index, self.lines())
        for tier, why in self.quarantined.items():
            cuda.quarantine(self.index, tier, why)


def _proven(kind: dict, tier: str, which: str) -> bool:
    if tier in (decide.STEPWISE, decide.TORCH):
        return True
    if tier not in TIERS:  # another version's
        return False
    record = kind.get("candidates", {}).get(f"{tier} {which}", {})
    return cache.candidate_state(record)[0] == cache.VERIFIED


@atexit.register
def _at_exit() -> None:
    save_quarantine()


_devices: dict[int, Device] = {}
_adopted: dict[int, dict] = {}  # records of kinds that another rank has found
_store: cache.Cache | None = None


def store() -> cache.Cache:
    """The user's cache."""
    global _store
    if _store is None or (_store.path != cache.place()):
        _store = cache.Cache()
    return _store


def device(index: int) -> Device:
    found = _devices.get(index)
    if found is None:
        found = _devices[index] = Device(index)
        found.read()
        found.hand_over()
    return found


def adopt(index: int, records: dict[str, dict]) -> None:
    """Take over what another process has found on a device like this one, for as long as this process
    lives."""
    _adopted.setdefault(index, {}).update(records)


def on_paper(asked: torch.device, here: bool) -> Device:
    """``device`` for who asks about a GPU that need not be here: nothing is known of one that is not."""
    if not here:
        return Device(0)
    return device(torch.cuda.current_device() if asked.index is None else asked.index)


def present(index: int, at: str) -> bool:
    """See that C++ knows what is known, for a graph that is compiled: at, when."""
    device(index)
    return True


present._dynamo_marked_constant = True


def learnt(index: int | None = None) -> None:
    """Look everything up again: the cache has changed."""
    global generation
    for number in list(_devices) if index is None else [index]:
        _devices.pop(number, None)
        device(number)
    generation = str(int(generation) + 1)


def entry(index: int, kind: Kind) -> tuple[str, str] | None:
    """The tiers of a kind's passes, None where nothing is known."""
    return device(index).entries.get(kind.key)


NEVER = "no kernel that could be proven computes such a layer"


_AS_FAST = "measured on this device: torch's own layer is as fast"


def doubt(here: Device, kinds: list[Kind], stack: Kind | None = None) -> str | None:
    """Why torch's own layer is to compute layers of these kinds in place of the kernels; None where each of
    them has been proven to be faster, or all together as a wavefront. stack: where they are one that could
    be, its kind."""
    if not kinds:
        return NEVER
    if stack is not None and stack.key in here.stacks:
        if here.stacks[stack.key] == decide.TORCH:
            return _AS_FAST
        if wavefront(here, stack) is not None:
            return None
    if not here.entries:
        return UNVERIFIED
    for kind in kinds:
        tiers = here.entries.get(kind.key)
        if tiers is None:
            return UNVERIFIED
        if decide.TORCH in tiers:
            return _AS_FAST
    bad = quarantined(here)
    for kind in kinds if bad else ():
        for tier in here.entries[kind.key][: len(kind.passes)]:
            if family(tier) in bad:
                return f"tier {tier!r} is in quarantine: see fastrnn.cuda_status()"
    return None


def wavefront(here: Device, stack: Kind | None) -> Wave | None:
    """The wavefront that computes stacked layers of a kind here, None where they run whole."""
    won = None if stack is None else here.stacks.get(stack.key)
    if not isinstance(won, Wave):
        return None
    bad = quarantined(here)
    return None if any(family(tier) in bad for tier in won.tiers) else won


def quarantined(here: Device) -> dict[str, str]:
    """The tiers that run by name alone, and why."""
    return here.quarantined | cuda.quarantined(here.index)


def family(tier: str) -> str:
    """A tier's name without the size of its clusters, and what runs beside it."""
    tier = tier.removesuffix("_overlap")
    return tier.partition("_")[0] if tier.startswith("cluster_") else tier


def doubt_recorded(
    index: int,
    cell: str,
    dtype: torch.dtype,
    tf32: bool,
    hidden: int,
    proj: int,
    directions: int,
    training: bool,
    at: str,
) -> str | None:
    """``doubt`` for a compiled graph, which serves other batches and lengths than those it is made with:
    whether any layer with these units is known to be faster. The planner decides when the graph runs. at:
    generation, by which the graph is made anew where something was learnt."""
    name = str(dtype).removeprefix("torch.")
    some = of_stack(Stack(cell, 4, 1, 1, hidden, proj, directions, 1, name, tf32, training, False))
    if not some:
        return NEVER
    head, work = some[0].key.partition(" B<=")[0], " training " if training else " inference "
    for key, tiers in device(index).entries.items():
        if key.startswith(f"{head} B<=") and work in key and decide.TORCH not in tiers:
            return None
    return UNVERIFIED


# What torch.compiler.assume_constant_result sets, without importing the compiler.
doubt_recorded._dynamo_marked_constant = True


def save_quarantine() -> bool:
    """What C++ has put in quarantine goes to the cache, for the next processes. Whether there was
    anything."""
    any_new = False
    for index, here in list(_devices.items()):
        found = {t: why for t, why in cuda.quarantined(index).items() if t not in here.saved}
        if not found or mode() == "off":
            continue
        here.quarantined |= found
        here.saved |= set(found)
        any_new = True
        known = identity.of(index)
        store().update(
            lambda document, found=found, known=known: cache.device_of(document, identity.text(known), known)[
                "quarantined"
            ].update(found)
        )
    return any_new


def release(index: int) -> None:
    """Let go of the tiers in quarantine: somebody wants them tried again."""
    known = identity.of(index)
    name = identity.text(known)
    store().update(lambda document: cache.device_of(document, name, known)["quarantined"].clear())
    cuda.quarantine(index, "", "")


def status(index: int) -> str:
    """What a kernel has left word of, "" where none has; the cache knows of it then."""
    device(index)
    text = cuda.status(index)
    save_quarantine()
    return text


def forget() -> None:
    """For tests: as in a new process."""
    global _store
    for index in list(_devices):
        cuda.trust(index, "")
        cuda.quarantine(index, "", "")
    _devices.clear()
    _adopted.clear()
    _store = None


def eligible(x: torch.Tensor) -> bool:
    """Whether a kind that is new may be tuned now: in an ordinary call, whose surroundings may wait."""
    return (
        mode() == "on"
        and type(x) is torch.Tensor
        and not torch_state.compiling()
        and not torch.are_deterministic_algorithms_enabled()
        and torch_state.dispatch_modes() == 0
        and not torch_state.tracing()
        and not torch.cuda.is_current_stream_capturing()
    )
