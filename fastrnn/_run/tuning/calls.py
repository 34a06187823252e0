"""A layer in front of a GPU's planner: what is known of layers like it."""

from __future__ import annotations

import json
import time
from typing import NamedTuple

import torch
from torch import Tensor

from ..._ops import torch_state
from ..._plan.tuning import stacks, trust
from ..._plan.tuning.kinds import Kind, Stack, of_stack
from . import tune


def ready(x: Tensor) -> None:
    """Before a call whose passes the planner alone decides: it knows what is known of the device."""
    if torch_state.compiling():
        trust.present(x.device.index or 0, trust.generation)
    else:
        trust.device(x.device.index or 0)


def after_an_error() -> None:
    """A kernel may have given up: what is in quarantine since then is kept, for the next processes too."""
    if not torch_state.compiling() and trust.save_quarantine():
        trust.learnt()


class _Asked(NamedTuple):
    """What calls that are alike are called: the kinds of a stack's layers, and its own where it could be cut
    into pieces."""

    layers: list[Kind]
    stack: Kind | None


def answer(
    stack,
    x: Tensor,
    rows: int,
    batch_sizes: Tensor | None,
    training: bool,
    *,
    autocast: bool = False,
    whole: bool = False,
) -> tuple[str | None, int]:
    """Why a stack over x is torch's own layer's, None where its kernels have been proven here; and into how
    many pieces its layers are cut then, 1 for whole ones, which ``whole`` asks for. autocast: whether it is
    on for x: then the kernels compute in its dtype."""
    if torch_state.exporting() or torch_state.tracing():
        return trust.UNVERIFIED, 1  # of a program, which outlives what is known now
    dtype, index = x.dtype, x.device.index or 0
    if autocast and dtype in torch_state.AUTOCAST_TYPES:
        dtype = torch_state.autocast_dtype(x)
    tf32 = dtype == torch.float32 and torch_state.rnn_tf32()
    directions = 2 if stack.bidirectional else 1
    if torch_state.compiling():
        layer = stack.cell, dtype, tf32, stack.hidden_size, stack.proj_size, directions, training
        return trust.doubt_recorded(index, *layer, trust.generation), 1
    packed = batch_sizes is not None
    steps = batch_sizes.size(0) if packed else x.size(0)
    here = trust.device(index)
    asked = stack, steps, rows, dtype, tf32, packed, training
    known = here.known.get(asked)
    if known is None:
        if len(here.known) > 4096:  # a program whose shapes never come again
            here.known.clear()
        sizes = stack.input_size, stack.hidden_size, stack.proj_size, directions, stack.num_layers
        name = str(dtype).removeprefix("torch.")
        facts = Stack(stack.cell, steps, rows, *sizes, name, tf32, training, packed)
        dropped = bool(stack.dropout) and stack.training
        known = here.known[asked] = _Asked(of_stack(facts), stacks.of_layers(facts, dropped))
    together = None if whole else known.stack
    found = trust.doubt(here, known.layers, together)
    if found is trust.UNVERIFIED or (together is not None and together.key not in here.stacks):
        new = [k for k in known.layers if k.key not in here.entries]
        new += [together] if together is not None and together.key not in here.stacks else []
        if new and trust.eligible(x):
            _first_call(index, new)
            here = trust.device(index)
            found = trust.doubt(here, known.layers, together)
    if found is not None or together is None:
        return found, 1
    wave = trust.wavefront(here, together)
    return None, 1 if wave is None else wave.pieces


def doubt(stack, x: Tensor, rows: int, batch_sizes: Tensor | None, training: bool) -> str | None:
    """The first half of ``answer``."""
    return answer(stack, x, rows, batch_sizes, training)[0]


_tried: set[tuple[int, str]] = set()  # kinds that were tuned at a first call, whatever came of it
_asked_at = 0.0  # when another rank was last asked what it has found


def _first_call(index: int, kinds: list[Kind]) -> None:
    """FASTRNN_TUNE=on: tune kinds that are new, once a process; where there are several, rank 0, and the
    others take over what it has found when it is there. Nobody waits for another: ranks need not make the
    same calls."""
    global _asked_at
    new = [kind for kind in kinds if (index, kind.key) not in _tried]
    if not new:
        return
    if not tune.distributed():
        _tried.update((index, kind.key) for kind in new)
        tune.run(index, new, shared=False)
        return
    store = torch.distributed.distributed_c10d._get_default_store()
    if torch.distributed.get_rank() == 0:
        _tried.update((index, kind.key) for kind in new)
        for key, record in tune.run(index, new, shared=False).kinds.items():
            store.set(_PLACE + key, json.dumps(record))
        return
    if time.monotonic() - _asked_at < 1.0:
        return
    _asked_at = time.monotonic()
    there = {kind.key: kind for kind in new if store.check([_PLACE + kind.key])}
    if there:
        _tried.update((index, key) for key in there)
        trust.adopt(index, {key: json.loads(store.get(_PLACE + key)) for key in there})
        trust.learnt(index)


_PLACE = "fastrnn/tune/"
