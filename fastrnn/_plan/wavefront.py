"""Into how many pieces stacked layers are best cut, to overlap in time on a GPU: see ``_run.wavefront``."""

from __future__ import annotations

import functools

from .._ops import library
from . import gpus

#: Microseconds. Estimates: a call from Python with its autograd node, and a kernel's start with its weights.
_HOST_CALL_US = 60.0
_PIECE_START_US = 15.0
_PIECES = (2, 4, 8, 16, 32)
#: Of the time without pieces; nearer to 1 an estimate decides nothing.
_WORTH = 0.8


@functools.lru_cache(maxsize=4096)
def planned(
    cell: str,
    num_layers: int,
    steps: int,
    rows: int,
    hidden: int,
    proj: int,
    dtype: str,
    training: bool,
    tf32: bool,
    gpu: gpus.Gpu,
) -> int:
    """The number of pieces that the plan's times make the fastest, 1 unless it is clearly so.

    The upper layers' plan stands for all: they differ in the input size alone, which is no part of it.
    """
    plan = library.plan(
        device="cuda",
        cell=cell,
        T=steps,
        B=rows,
        I=hidden,
        H=hidden,
        P=proj,
        dtype=dtype,
        training=training,
        gpu=gpu.properties(),
        tf32=tf32,
    )
    passes = [plan, plan["backward"]] if training else [plan]
    if any(p["kernel"].startswith("stepwise") or 2 * p["ctas"] > gpu.sms for p in passes):
        return 1  # it fills the GPU by itself
    at_once = min(num_layers, *(gpu.sms // p["ctas"] for p in passes))
    step_us = sum(p["step_us"] for p in passes)
    best, best_us = 1, _WORTH * num_layers * steps * step_us
    for count in _PIECES:
        if count > steps:
            break
        # Layers beyond those that find room wait for a whole wave of the others.
        waves = -(-num_layers // at_once) * (count + at_once - 1)
        device_us = waves * (steps * step_us / count + len(passes) * _PIECE_START_US)
        host_us = len(passes) * count * num_layers * _HOST_CALL_US
        if max(device_us, host_us) < best_us:
            best, best_us = count, max(device_us, host_us)
    return best
