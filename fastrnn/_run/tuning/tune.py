"""fastrnn.tune: find out which kernels are right and fast on this GPU, and keep it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ... import _checks
from ..._cells import RNN
from ..._ops import devices, library, torch_state
from ..._plan import costs, gpus, subject
from ..._plan.tuning import cache, identity, session, stacks, trust
from ..._plan.tuning.kinds import DTYPES, ROWS, Kind, Stack, of_stack
from .. import status
from . import child

#: What is tuned where nothing is said: the shapes that most programs have, T, B, I, H.
MAIN = [(100, B, H, H) for H in (64, 128, 256, 512, 1024) for B in (1, 16, 64)]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What fastrnn.tune found.

    Attributes:
        device: the GPU's identity, on which every outcome hangs.
        kinds: for each kind of layer its record: "candidates", each with its "state" ("verified",
            "quarantined", "not run"), "why" and "us"; "forward" and "backward", the tiers that run by default
            from now on, or "torch"; "why"; "us", the medians of torch's own layer and the stepwise tier. For
            a kind of stacked layers the same of wavefronts ("wavefront_8", into 8 pieces), and "layers" where
            none has won and each layer runs as its own kind says.
        path: the cache's file.
    """

    device: dict[str, str]
    kinds: dict[str, dict]
    path: str

    @property
    def quarantined(self) -> dict[str, str]:
        """Candidates that will not run unasked, by kind and name, and why."""
        return {
            f"{key}: {name}": candidate["why"]
            for key, record in self.kinds.items()
            for name, candidate in record.get("candidates", {}).items()
            if candidate["state"] == cache.QUARANTINED
        }

    def to_dict(self) -> dict:
        """What the cache keeps, as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return "\n".join([f"{self.device['gpu']}, kept in {self.path}", *map(" | ".join, self.rows())])

    def rows(self) -> list[list[str]]:
        """A line for each kind: what runs, why, and its candidates."""
        rows = []
        for key, record in self.kinds.items():
            tiers = [record[which] for which in ("forward", "backward") if which in record]
            rows.append([key, " / ".join(dict.fromkeys(tiers)) or "torch (not timed)", record.get("why", "")])
            for name, candidate in sorted(record.get("candidates", {}).items()):
                us = f"{candidate['us']:.1f} µs" if "us" in candidate else ""
                rows.append([f"  {name}", candidate["state"], candidate["why"] or us])
        return rows


def tune(
    model_or_shapes: nn.Module | Sequence[int] | Sequence[Sequence[int]] | None = None,
    input: Tensor | tuple[int, int] | None = None,
    *,
    cell: str | Sequence[str] = "lstm",
    dtype: torch.dtype | Sequence[torch.dtype] | None = None,
    device: torch.device | str | int | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    training: bool | None = None,
    rows: str = "full",
    verify_only: bool = False,
    again: bool = False,
    progress: bool = True,
    limit_s: float = child.LIMIT_S,
) -> Tuning:
    """Verify the CUDA kernels' tiers on this GPU, time those that are right, and let the winners run by
    default.

        fastrnn.tune(model, x)
        fastrnn.tune([(100, 16, 256, 256), (100, 64, 256, 256)], cell="gru", dtype=torch.bfloat16)

    Each tier that could take a layer runs first in a child process with a time limit: at the layer's own
    shape and at T = 256, on random data, twice with equal bits, beside the stepwise tier, torch's own layer
    and float64. What is wrong, not a number, different when run again, hangs, crashes or is slower than a
    step at a time goes into quarantine: it runs by name alone. A tier replaces torch's own layer where it
    wins by 5% or more, forward and backward together for training. What was found holds for layers of the
    same cell, dtype, H and direction whose B and T round up to the same powers of two; it is kept in the
    cache, for this very GPU, driver, CUDA, cuDNN, torch and build.

    Stacked layers with one direction, no dropout and rows of equal length may also overlap in time
    (``fastrnn.wavefront``). Their wavefronts, into 2 to 16 pieces, are candidates of the stack: verified in
    the same way, with the tiers that are right for its layers, and taken where one beats whole layers and
    torch's own stack by 5% or more.

    No number is drawn from the caller's generators. With torch.use_deterministic_algorithms nothing is
    timed: the tiers are verified, and what runs stays as it was. Where torch.distributed is initialised
    every rank calls this; rank 0 tunes, and the others take over what it found.

    Args:
        model_or_shapes: a module, of which every recurrent layer is tuned; a shape (T, B, I, H) or several;
            by default the shapes that most programs have.
        input: for a module: its input, or (T, B); without it T=100, B=16.
        cell, dtype, num_layers, bidirectional: for shapes; several cells or dtypes are all combined. A module
            knows its own, and its dtype unless one is given, as for autocast. By default one layer of an LSTM
            in float32.
        device: the GPU, by default the module's or the current one.
        training: whether for layers that are trained, or for inference; by default both.
        rows: "full"; "packed" for PackedSequence, as for a module whose input is one; "masked" for lengths
            and resets, which torch's layer has not.
        verify_only: time nothing. Nothing new will run by default.
        again: also what has an outcome already, quarantine included.
        progress: a bar on stderr. limit_s: seconds for a candidate.

    Returns:
        A Tuning; print it, or read the fields.

    Raises:
        RuntimeError: torch sees no GPU, the CUDA kernels are not loaded or do not run on it; within a
            compiler, a capture or an export.
        TypeError, ValueError: as of fastrnn.explain.
    """
    if isinstance(limit_s, bool) or not isinstance(limit_s, (int, float)):
        raise TypeError(f"limit_s: expected seconds, got {limit_s!r}")
    if not 0 < limit_s < float("inf"):
        raise ValueError(f"limit_s: expected a positive number of seconds, got {limit_s!r}")
    index = _device(model_or_shapes, device)
    kinds = kinds_of(model_or_shapes, input, cell, dtype, bidirectional, training, rows, num_layers)
    return run(index, kinds, verify_only=verify_only, again=again, progress=progress, limit_s=limit_s)


def run(
    index: int,
    kinds: list[Kind],
    *,
    verify_only: bool = False,
    again: bool = False,
    progress: bool | Callable = False,
    limit_s: float = child.LIMIT_S,
    shared: bool = True,
) -> Tuning:
    """``tune`` for kinds. shared: whether all ranks call this, of which one tunes."""
    shared = shared and distributed()
    rank = torch.distributed.get_rank() if shared else 0
    if rank == 0:
        if again:
            trust.release(index)
        timed = not verify_only and not torch.are_deterministic_algorithms_enabled()
        with runner_for(index, limit_s) as runner:
            gpu, options = gpus.find(device=f"cuda:{index}"), {"timed": timed, "again": again}
            found = session.Session(trust.store(), identity.of(index), gpu, runner, **options)
            with _bar(progress, found.steps(kinds)) as advance:
                outcomes = found.run(kinds, advance)
        records = {outcome.kind.key: outcome.record for outcome in outcomes}
    else:
        records = {}
    if shared:
        holder = [records]
        torch.distributed.broadcast_object_list(holder, src=0)
        records = holder[0]
        if rank:
            trust.adopt(index, records)
    trust.learnt(index)
    return Tuning(identity.of(index), records, str(trust.store().path))


#: Who runs candidates on a GPU of this process; tests put others here.
runner_for = child.on_device


def kinds_of(
    model_or_shapes,
    input=None,
    cell="lstm",
    dtype=None,
    bidirectional=False,
    training=None,
    rows="full",
    num_layers=1,
):
    """The kinds of layers and stacks that ``tune`` is asked about, each once, a stack's layers before it."""
    _checks.one_of("tune", "rows", rows, ROWS)
    num_layers = subject.count("num_layers", num_layers, 1, 1 << 20)
    works = (False, True) if training is None else (bool(training),)
    found: dict[str, Kind] = {}

    # sizes: T, B, I, H, of the projection, directions, layers. name: of the dtype. how: rows differ.
    def add(*sizes: int, cell: str, name: str, how: str, dropout: float = 0.0) -> None:
        for work in works:
            facts = Stack(cell, *sizes, name, torch_state.rnn_tf32(), work, how != "full")
            kinds = [dataclasses.replace(kind, rows=how) for kind in of_stack(facts)]
            stack = stacks.of_layers(facts, work and dropout > 0)
            kinds += [stack] if kinds and stack is not None else []
            for kind in kinds:
                found.setdefault(kind.key, kind)

    dtypes = None if dtype is None else _several("dtype", dtype, torch.dtype)
    for one in dtypes or ():
        if not isinstance(one, torch.dtype) or str(one).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {one!r}")
    if isinstance(model_or_shapes, nn.Module):
        layers = [m for m in model_or_shapes.modules() if isinstance(m, nn.RNNBase) and not costs.is_scan(m)]
        # Of a variant there is nothing to find out: no persistent kernel computes it.
        layers = [m for m in layers if vars(m).get("variant") is None]
        if not layers:
            raise TypeError(
                f"model_or_shapes: {type(model_or_shapes).__name__} has no recurrent layer to tune"
            )
        for module in layers:
            of = input if module is model_or_shapes else _steps(input)
            one = subject.read(module, of, "lstm", 1, False, 0, False)
            D = 2 if one.bidirectional else 1
            sizes = one.T, one.B, one.inputs, one.hidden, one.proj, D, one.num_layers
            for of in dtypes or [one.dtype]:
                how = "packed" if one.packed and rows == "full" else rows
                add(*sizes, cell=one.cell, name=_name(of), how=how, dropout=module.dropout)
        return list(found.values())
    shapes = MAIN if model_or_shapes is None else model_or_shapes
    if not isinstance(shapes, Sequence) or isinstance(shapes, str) or not shapes:
        wanted = "a module, a shape (T, B, I, H) or several"
        raise TypeError(f"model_or_shapes: expected {wanted}, got {_checks.kind(shapes)}")
    if not isinstance(shapes[0], Sequence):
        shapes = [shapes]
    cells = _several("cell", cell, str)
    for name in cells:
        if name not in RNN:
            raise ValueError(f"cell: expected one of {', '.join(RNN)}, got {name!r}")
    for shape in shapes:
        one = subject.read(shape, None, cells[0], 1, bidirectional, 0, False)
        for name in cells:
            for of in dtypes or [torch.float32]:
                sizes = one.T, one.B, one.inputs, one.hidden, 0, 2 if bidirectional else 1, num_layers
                add(*sizes, cell=name, name=_name(of), how=rows)
    return list(found.values())


def _several(argument: str, given, one: type) -> list:
    """An argument that is one thing or several."""
    if isinstance(given, one):
        return [given]
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise TypeError(f"{argument}: expected a {one.__name__} or several, got {given!r}")
    return list(given)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _steps(input):
    """Of a larger model's input its steps and rows, where it says them."""
    if isinstance(input, Tensor):
        raise TypeError("input: for a model with layers inside, expected (T, B), got a Tensor")
    return input


def _device(model, device) -> int:
    if torch_state.compiling() or torch_state.tracing() or torch_state.exporting():
        raise RuntimeError("fastrnn.tune within a compiler or an export: call it before")
    if not torch.cuda.is_available():
        raise RuntimeError("fastrnn.tune: torch sees no GPU")
    if not library.cuda_loaded:
        raise RuntimeError(
            "fastrnn.tune: the CUDA kernels are not loaded: fastrnn or torch was built without CUDA"
        )
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("fastrnn.tune while a CUDA graph is captured: call it before")
    if device is None and isinstance(model, nn.Module):
        device = next((p.device for p in model.parameters() if p.is_cuda), None)
    index = status.index_of("cuda" if device is None else device)
    gpu = gpus.find(device=f"cuda:{index}")
    if not devices.built_for(gpu.compute_capability):
        capability = "{}.{}".format(*divmod(gpu.compute_capability, 10))
        raise RuntimeError(
            f"fastrnn.tune: the CUDA kernels were not built for {gpu.name}, compute capability {capability}"
        )
    return index


@contextlib.contextmanager
def _bar(progress: bool | Callable, steps: int) -> Iterator[Callable[[str, int], None]]:
    """What to tell of progress: nobody, a function of the caller's, or whoever looks at stderr."""
    if callable(progress):
        with progress(steps) as advance:
            yield advance
        return
    done = 0

    def advance(title: str, more: int) -> None:
        nonlocal done
        done += more
        if progress and title:
            print(f"\r[{done:3d}/{steps}] {title[:100]:100}", end="", file=sys.stderr, flush=True)

    yield advance
    if progress:
        print("\r" + " " * 112 + "\r", end="", file=sys.stderr, flush=True)


def distributed() -> bool:
    """Whether other processes take part."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1
