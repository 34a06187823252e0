"""A layer in front of a GPU's planner: what is known of layers like it."""

from __future__ import annotations

import json
import time

import torch
from torch import Tensor

from .._ops import torch_state
from .._plan.tuning import trust
from .._plan.tuning.kinds import Kind, of_stack
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


def doubt(stack, x: Tensor, rows: int, batch_sizes: Tensor | None, training: bool) -> str | None:
    """Why a stack over x is torch's own layer's, None where its kernels have been proven here."""
    if torch_state.exporting() or torch_state.tracing():
        return trust.UNVERIFIED  # of a program, which outlives what is known now
    dtype, index = x.dtype, x.device.index or 0
    tf32 = dtype == torch.float32 and torch_state.rnn_tf32()
    directions = 2 if stack.bidirectional else 1
    if torch_state.compiling():
        layer = stack.cell, dtype, tf32, stack.hidden_size, stack.proj_size, directions, training
        return trust.doubt_recorded(index, *layer, trust.generation)
    packed = batch_sizes is not None
    steps = batch_sizes.size(0) if packed else x.size(0)
    device = trust.device(index)
    asked = stack, steps, rows, dtype, tf32, packed, training
    kinds = device.known.get(asked)
    if kinds is None:
        if len(device.known) > 4096:  # a program whose shapes never come again
            device.known.clear()
        sizes = stack.input_size, stack.hidden_size, stack.proj_size, directions, stack.num_layers
        name = str(dtype).removeprefix("torch.")
        kinds = of_stack(stack.cell, steps, rows, *sizes, name, tf32, training, packed)
        device.known[asked] = kinds
    found = trust.doubt(device, kinds)
    if found is trust.UNVERIFIED and kinds and trust.eligible(x):
        _first_call(index, [k for k in kinds if k.key not in device.entries])
        found = trust.doubt(trust.device(index), kinds)
    return found


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
