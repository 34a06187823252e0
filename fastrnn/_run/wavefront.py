"""Stacked layers on a GPU at the same time: the sequence in pieces, a stream for each layer.

A persistent kernel fills a few SMs of many, and layer l needs of layer l-1 only the steps before its own. So
the time steps are cut into pieces, and layer l computes piece j while layer l-1 computes piece j+1:

    layer 0   0 1 2 3
    layer 1     0 1 2 3          L + P - 1 pieces' time instead of L * P
    layer 2       0 1 2 3

Every piece is a call of the layer's op with the last one's state, and autograd runs backward on the streams
of forward, so that the gradients go through the same wavefront the other way. What it costs is a launch and
the reading of the weights once a piece, and the host's time to start them.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _checks
from .._ops import torch_state

_asked: contextvars.ContextVar[int | None] = contextvars.ContextVar("fastrnn_wavefront", default=None)


@contextlib.contextmanager
def wavefront(pieces: int | None) -> Iterator[None]:
    """Within it, stacked layers cut their sequence into so many pieces that run as a wavefront.

    Args:
        pieces: 1 for whole layers one after the other, more for that many pieces, None for what is done
            without this context: whole layers, but where ``fastrnn tune`` has found pieces to be right and
            faster on this device. ``fastrnn.explain`` names the number of pieces that the plan's times would
            make, or those that were proven.

    Layers with two directions, packed or masked batches, dropout in training, and compiled graphs run whole
    all the same. The numbers are the same up to rounding in the weights' gradients, whose sums over time are
    cut into pieces.

    It holds for calls on the thread (or asyncio task) that entered it. What torch.utils.checkpoint computes
    again during backward() comes later, and on a GPU from a thread of autograd's: enter it within the
    function that is checkpointed, so that both runs are cut alike.

    Raises:
        TypeError, ValueError: pieces that is no integer, or below 1.
    """
    if pieces is not None:
        if isinstance(pieces, bool) or not isinstance(pieces, int):
            raise TypeError(f"wavefront: expected an int or None as pieces, got {_checks.kind(pieces)}")
        if pieces < 1:
            raise ValueError(f"wavefront: expected pieces of at least 1, got {pieces}")
    if torch_state.compiling():  # layers run whole there
        yield
        return
    token = _asked.set(pieces)
    try:
        yield
    finally:
        _asked.reset(token)


def asked() -> int | None:
    """Into how many pieces the caller wants layers cut, None where he leaves it open."""
    return None if torch_state.compiling() else _asked.get()


def pieces(x: Tensor, proven: int = 1) -> int:
    """Into how many pieces a stack of plain layers over x, (T, B, I), is cut; 1 for not at all.

    As somebody asks, else as the device has proven it: the plan's times are no proof.
    """
    if torch_state.compiling() or torch_state.tracing():
        return 1
    return min(_asked.get() or proven, x.size(0))


@functools.lru_cache(maxsize=64)
def _streams(device: torch.device, count: int) -> list:
    """The streams of the layers, made once a device; one more layer does not change those of the others."""
    return [torch.cuda.Stream(device) for _ in range(count)]


def run(layer, x: Tensor, states: list, weights: list, count: int, **options):
    """The layers over x, (T, B, I), cut into ``count`` pieces.

    states: (h, c) of each layer, (1, B, .); c None unless LSTM. weights: the list of each layer.
    layer: as ``fastrnn._ops.autograd.layer``, with its options.
    Returns y, h_n and c_n (None unless LSTM), (L, B, .).
    """
    streams = _streams(x.device, len(weights)) if x.is_cuda else None
    main = torch.cuda.current_stream(x.device) if streams else None
    values, states = list(x.tensor_split(count)), list(states)
    _run_pieces(functools.partial(layer, **options), values, states, weights, streams, main)
    y, (h, c) = torch.cat(values), zip(*states, strict=True)
    return y, torch.cat(h), (None if c[0] is None else torch.cat(c))


def _run_pieces(layer, values: list, states: list, weights: list, streams: list | None, main) -> None:
    """Puts the last layer's output in place of the pieces in ``values``, and the last states in ``states``.

    streams: one for each layer; work queued on ``main`` before comes before theirs, and after them all what
    it is given next. None on the CPU: the same calls in the same order.
    """
    for k, stream in enumerate(streams or ()):
        stream.wait_stream(main)
        # Made on `main`, which waits for the forward pass below. But backward reads them on this stream again
        # and then lets go of them, and nothing on `main` waits for that: their memory has to.
        for tensor in (*states[k], *weights[k], *(values if k == 0 else ())):
            if tensor is not None:
                tensor.record_stream(stream)
    for wave in range(len(values) + len(weights) - 1):
        # From the top, so that a layer waits for the piece it takes and not for the next one too.
        for k in reversed(range(len(weights))):
            j = wave - k
            if not 0 <= j < len(values):
                continue
            if streams is None:
                values[j], *states[k] = layer(values[j], *states[k], weights[k])
                continue
            if k:
                streams[k].wait_stream(streams[k - 1])
            with torch.cuda.stream(streams[k]):
                values[j], *states[k] = layer(values[j], *states[k], weights[k])
            # Made on this layer's stream and read last on another: its memory waits for that one.
            values[j].record_stream(streams[k + 1] if k + 1 < len(weights) else main)
            for state in states[k]:
                if state is not None:
                    state.record_stream(main)
    for stream in streams or ():
        main.wait_stream(stream)
