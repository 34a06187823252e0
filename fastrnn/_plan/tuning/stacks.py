"""Stacked layers as a wavefront (``_run.wavefront``): into how many pieces, with which tiers, and whether.

A stack is a kind of its own beside those of its layers. Its candidates are made of what its layers have
proven: a wavefront cuts the sequence into pieces, and each piece is a call of a layer with a tier that is
verified for it. So layers are tuned before their stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..._ops import library
from .. import gpus
from . import cache, decide
from .kinds import PASSES, PERSISTENT_DTYPES, TIERS, Kind, Stack

#: Into how many pieces. With fewer steps in one its start is most of what it does.
PIECES = (2, 4, 8, 16)
LEAST_STEPS = 8
#: What a stack's record says of layers that run whole, each as its own kind says.
LAYERS = "layers"


class Wave(NamedTuple):
    """Stacked layers cut into pieces; 1 for whole layers, one after the other, which others are beside.

    forward, backward: the tiers of every layer's passes; backward "" for inference.
    """

    pieces: int
    forward: str
    backward: str = ""

    @property
    def tier(self) -> str:
        return f"wavefront_{self.pieces}" if self.pieces > 1 else LAYERS

    @property
    def tiers(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.forward, self.backward)))

    @property
    def passes(self) -> tuple[str, str]:
        """What the planner is told of both."""
        return self.forward, self.backward or decide.STEPWISE

    @property
    def name(self) -> str:
        return f"{self.tier} {'/'.join(self.tiers)}"

    @classmethod
    def parsed(cls, fields: object) -> Wave | None:
        """Of what a cache holds; None where it is none."""
        if not isinstance(fields, list) or len(fields) != 3:
            return None
        pieces, *tiers = fields
        known = all(t in (decide.STEPWISE, *TIERS) for t in tiers if t != "")
        if not isinstance(pieces, int) or pieces < 2 or not tiers[0] or not known:
            return None
        return cls(pieces, *tiers)


def of_layers(stack: Stack, dropped: bool = False) -> Kind | None:
    """The kind of a stack that could be cut, None where it runs whole for sure. dropped: whether something is
    dropped between its layers."""
    whole = stack.num_layers < 2 or stack.directions > 1 or stack.packed or dropped
    if whole or stack.T < 2 * LEAST_STEPS or stack.proj or stack.dtype not in PERSISTENT_DTYPES:
        return None
    sizes = stack.T, stack.B, stack.inputs, stack.hidden, 1
    how = stack.dtype, stack.rounded, stack.training
    return Kind(stack.cell, *sizes, *how, layers=stack.num_layers)


def layers_of(stack: Kind, T: int | None = None) -> list[Kind]:
    """The kinds of a stack's layers, over its own steps or others."""
    sizes = sorted({stack.I, stack.H})
    return [dataclasses.replace(stack, I=n, T=T or stack.T, layers=1) for n in sizes]


def keys_of_pieces(stack: Kind, pieces: int) -> list[str]:
    """The names of the kinds of layers that the pieces of all stacks with this key are."""
    longest = 1 << (stack.T - 1).bit_length()  # of those that share the key
    steps = dict.fromkeys((-(-longest // pieces), (longest // 2 + 1) // pieces))
    return [kind.key for n in steps if n for kind in layers_of(stack, n)]


#: What a stack's record has beside those of layers where a wavefront has won: its fields; the kinds of its
#: layers, which have to stay as they were found; those that its pieces are for the planner.
FIELDS = ("wave", "layers", "pieces")


def record_of(stack: Kind, wave: Wave) -> dict:
    fields = [wave.pieces, wave.forward, wave.backward]
    of = [kind.key for kind in layers_of(stack)]
    return dict(zip(FIELDS, (fields, of, keys_of_pieces(stack, wave.pieces)), strict=True))


def trusted(record: dict, records: Mapping[str, dict]) -> Wave | None:
    """The wavefront of a stack's record, None where it is not verified, or a tier of it is in quarantine for
    one of the stack's layers."""
    wave = Wave.parsed(record.get("wave"))
    candidates = record.get("candidates", {})
    if wave is None or cache.candidate_state(candidates.get(wave.name, {}))[0] != cache.VERIFIED:
        return None
    if not all(_are_keys(record.get(field)) for field in FIELDS[1:]):
        return None
    for key in record["layers"]:
        of = records.get(key, {}).get("candidates", {})
        for tier, which in zip(wave.tiers, PASSES, strict=False):
            entry = of.get(f"{tier} {which}")
            if entry is not None and cache.candidate_state(entry)[0] != cache.VERIFIED:
                return None
    return wave


def _are_keys(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(key, str) and "\t" not in key for key in found)


def candidates(stack: Kind, records: Mapping[str, dict], gpu: gpus.Gpu) -> Iterator[Wave]:
    """The wavefronts of a stack that are worth a trial: of the fastest tiers of which two fit on the GPU at
    once, verified for each of its layers (``records``, by kind)."""
    chosen = [_best(stack, records, gpu, which, 2) for which in stack.passes]
    if None in chosen:
        return
    for pieces in PIECES:
        if stack.T // pieces >= LEAST_STEPS:
            yield Wave(pieces, *chosen)


def whole(stack: Kind, records: Mapping[str, dict], gpu: gpus.Gpu) -> Wave:
    """The same layers one after the other, each by the fastest that it has."""
    return Wave(1, *(_best(stack, records, gpu, which, 1) or decide.STEPWISE for which in stack.passes))


def _best(stack: Kind, records: Mapping[str, dict], gpu: gpus.Gpu, which: str, at_once: int) -> str | None:
    """The fastest verified tier of a pass of which so many calls fit on the GPU, None for none."""
    found = []
    for tier in TIERS:
        if at_once > 1 and tier in library.OVERLAPS:  # other layers are beside it there
            continue
        us = 0.0
        for kind in layers_of(stack):
            entry = records.get(kind.key, {}).get("candidates", {}).get(f"{tier} {which}", {})
            if cache.candidate_state(entry)[0] != cache.VERIFIED:
                break
            plan = _plan(kind, tier, which, gpu)
            # A graph's kernels are laid over the whole GPU.
            if not plan["possible"] or at_once * plan.get("ctas", gpu.sms) > gpu.sms:
                break
            us += entry.get("us") or plan["step_us"] * kind.T
        else:
            found.append((us, TIERS.index(tier)))  # of equals the one that takes the fewest SMs
    return TIERS[min(found)[1]] if found else None


def _plan(kind: Kind, tier: str, which: str, gpu: gpus.Gpu) -> dict:
    plan = library.plan(
        device="cuda",
        cell=kind.cell,
        **{"T": kind.T, "B": kind.B, "I": kind.I, "H": kind.H},
        dtype=kind.dtype,
        training=True,
        gpu=gpu.properties(),
        tf32=kind.tf32,
        tier=tier,
    )
    return plan if which == PASSES[0] else plan["backward"]


def slow(us: float, whole_us: float) -> str:
    """Why a wavefront is of no use that whole layers outrun, "" where it does not."""
    return "" if us <= whole_us else f"slow: {us:.1f} µs, whole layers take {whole_us:.1f}"


def decided(times: Mapping[Wave, float], whole_us: float, torch_us: float | None) -> tuple[Wave | str, str]:
    """Who computes a stack, and why: a wavefront that beats whole layers and torch's own stack by 5% or more,
    "torch", or each layer as its own kind says."""
    best = min(times, key=lambda wave: (times[wave], wave.pieces), default=None)
    rivals = {"whole layers take": whole_us} | ({} if torch_us is None else {"torch's own take": torch_us})
    told = ", ".join(f"{words} {us:.1f}" for words, us in rivals.items())
    if best is not None and times[best] <= decide.WORTH * min(rivals.values()):
        return best, f"{times[best]:.1f} µs, {told}"
    if torch_us is not None and whole_us > decide.WORTH * torch_us:
        return decide.TORCH, f"torch's own layers take {torch_us:.1f} µs, whole layers {whole_us:.1f}"
    return LAYERS, f"no wavefront is faster: {told}"
