"""Which cases a run has: on the CPU, and on a GPU, where they are the plane of hidden sizes and batches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fastrnn.proof import _variants as variants

from .cases import BESIDE, CELLS, PATHS, SRU_CELLS, WORK, Case, card_name
from .contenders.registry import CUDA_PEERS

#: T, B, H with as many inputs as hidden units: from one step of one row to a layer that fills the machine.
SHAPES = (
    (1, 1, 256),
    (100, 1, 256),
    (100, 1, 512),
    (100, 16, 128),
    (100, 32, 256),
    (50, 64, 512),
    (35, 20, 650),
    (50, 64, 1024),
)

#: What nobody has tuned for: T, B, I, H of shapes drawn at random, small sizes as often as large ones.
RANDOM_SEED, RANDOM_COUNT = 15, 30
RANDOM_LIMITS = {"T": (1, 300), "B": (1, 96), "I": (16, 1100), "H": (16, 1100)}


def random_shapes(
    count: int = RANDOM_COUNT, seed: int = RANDOM_SEED
) -> tuple[tuple[int, int, int, int], ...]:
    """T, B, I, H of `count` layers: the same for the same seed, on every machine. A smaller count is the
    beginning of a larger one's."""
    draw = random.Random(seed)

    def size(least: int, most: int) -> int:  # of equal chance in its logarithm
        return min(most, int(math.exp(draw.uniform(math.log(least), math.log(most + 1)))))

    return tuple(tuple(size(*limits) for limits in RANDOM_LIMITS.values()) for _ in range(count))


RANDOM_SHAPES = random_shapes()

#: T, B, H of the SRU cases.
SRU_SHAPES = ((1, 1, 512), (100, 1, 512), (100, 16, 128), (100, 32, 256), (100, 32, 512), (50, 64, 1024))

#: The same of the other recurrences that torch.nn has not.
ELEMENTWISE_SHAPES = ((100, 32, 256),)

#: B, H of the single-step modules.
CELL_SHAPES = ((1, 256), (32, 256), (1, 512), (32, 512))


@dataclass(frozen=True)
class Preset:
    """A choice of cases. budget_s is what all timing together aims at, on one number of threads."""

    shapes: Sequence[tuple[int, int, int]]
    packed_shapes: Sequence[tuple[int, int, int]]
    proj_shapes: Sequence[tuple[int, int, int]]
    cell_shapes: Sequence[tuple[int, int]]
    sweep_steps: int
    sweep_batches: Sequence[int]
    sweep_hidden: Sequence[int]
    sweep_work: Sequence[str]
    scaling_shapes: Sequence[tuple[int, int, int]]
    memory_shapes: Sequence[tuple[int, int, int]]
    budget_s: float
    sru_shapes: Sequence[tuple[int, int, int]] = ()
    elementwise_shapes: Sequence[tuple[int, int, int]] = ()
    random_shapes: Sequence[tuple[int, int, int, int]] = ()
    variant_shapes: Sequence[tuple[int, int, int]] = ()


#: T, B, H that the variants' limits are set on; heads also where their product is most of the work.
VARIANT_SHAPES = ((100, 32, 256),)
HEADS_SHAPES = (*VARIANT_SHAPES, (50, 64, 512))
#: A preset without anything.
_NOTHING = Preset((), (), (), (), 0, (), (), (), (), (), 0.0)

PRESETS = {
    "quick": Preset(
        shapes=((1, 1, 256), (100, 1, 256), (100, 16, 128)),
        packed_shapes=((100, 16, 128),),
        proj_shapes=((100, 16, 128),),
        cell_shapes=((1, 256), (32, 256)),
        sru_shapes=((100, 16, 128),),
        sweep_steps=16,
        sweep_batches=(1, 32),
        sweep_hidden=(64, 128, 256),
        sweep_work=("inference",),
        scaling_shapes=((100, 16, 128),),
        memory_shapes=((100, 16, 128),),
        budget_s=20.0,
    ),
    "full": Preset(
        shapes=SHAPES,
        packed_shapes=SHAPES,
        proj_shapes=SHAPES,
        cell_shapes=CELL_SHAPES,
        sru_shapes=SRU_SHAPES,
        elementwise_shapes=ELEMENTWISE_SHAPES,
        sweep_steps=16,
        sweep_batches=(1, 16, 64),
        sweep_hidden=(64, 128, 256, 512, 1024),
        sweep_work=WORK,
        scaling_shapes=tuple(s for s in SHAPES if s[1] >= 16),
        memory_shapes=((100, 32, 256), (50, 64, 512), (50, 64, 1024)),
        budget_s=420.0,
        variant_shapes=VARIANT_SHAPES,
    ),
    # LSTM, GRU and RNN on RANDOM_SHAPES alone.
    "random": replace(_NOTHING, budget_s=180.0, random_shapes=RANDOM_SHAPES),
    # The cells' options alone, beside the plain cells.
    "variants": replace(_NOTHING, budget_s=120.0, variant_shapes=VARIANT_SHAPES),
}


def _wanted(modes: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split modes into directions of work and paths; where none of a kind is named, all of it is meant."""
    modes = list(modes)
    return [m for m in WORK if m in modes] or list(WORK), [m for m in PATHS if m in modes] or list(PATHS)


def select(
    preset: Preset,
    *,
    cells: Sequence[str] = (),
    shapes: Sequence[tuple[int, int, int]] = (),
    dtypes: Sequence[str] = (),
    modes: Sequence[str] = (),
    device: str = "cpu",
) -> list[Case]:
    """The preset's cases that pass the filters; an empty filter lets everything through.

    Shapes replace the preset's own, so any T, B, H can be asked for; the single-step modules take B and H of
    those, and the series over hidden sizes is left out.
    """
    cells, (works, paths) = cells or CELLS, _wanted(modes)
    cases: list[Case] = []

    def add(cell, path, T, B, H, over=works, **more):
        cases.extend(Case(cell, path, w == "training", T, B, H, H, **more) for w in over)

    for path in paths:
        if path == "cells":
            sizes = list(dict.fromkeys((B, H) for _, B, H in shapes)) if shapes else preset.cell_shapes
            for cell in ("lstm", "gru"):
                for B, H in sizes:
                    add(cell, path, 1, B, H)
            continue
        own = {"layers": preset.shapes, "packed": preset.packed_shapes, "proj": preset.proj_shapes}[path]
        for cell in CELLS if path == "layers" else ("lstm",):
            of_cell = own
            if cell in BESIDE:
                of_cell = preset.sru_shapes if cell in SRU_CELLS else preset.elementwise_shapes
            for T, B, H in shapes or of_cell:
                P = max(1, H // 2) if path == "proj" else max(1, H // 4) if cell == "srupp" else 0
                add(cell, path, T, B, H, P=P)
    if "layers" in paths and not shapes:
        for cell in (c for c in CELLS if c not in BESIDE):
            for T, B, inputs, H in preset.random_shapes:
                cases.extend(Case(cell, "layers", w == "training", T, B, inputs, H) for w in works)
        for cell in (c for c in CELLS if preset.variant_shapes):
            # All of them at once is nothing to be timed: its state is chaotic, and nobody agrees about it.
            for variant in (v for v in variants.VARIANTS if v != "all"):
                if variants.has(card_name(cell), variant):
                    sizes = HEADS_SHAPES if variant == "heads" else preset.variant_shapes
                    for T, B, H in sizes:
                        add(cell, "layers", T, B, H, variant=variant)
        for cell in ("lstm", "gru"):
            for B in preset.sweep_batches:
                for H in preset.sweep_hidden:
                    over = [w for w in works if w in preset.sweep_work]
                    add(cell, "layers", preset.sweep_steps, B, H, sweep=True, over=over)

    cases = [c for c in cases if c.cell in cells]
    # The series is for the first dtype alone: one set of plots.
    dtypes = list(dtypes) or ["float32"]
    return [
        replace(c, dtype=dtype, device=device)
        for dtype in dtypes
        for c in cases
        if not (c.sweep and dtype != dtypes[0])
    ]


# On a GPU

#: Steps of every case on a GPU but the named one: enough that what a call costs once does not show.
STEPS = 128
#: Where cuDNN is at its best, and a figure is published: FlashRNN's (arXiv 2412.07752), on an H100.
NAMED = Case("lstm", "layers", False, 1024, 16, 768, 768, dtype="float16")
FORMS = ({"layers": 2}, {"directions": 2}, {"path": "packed"})


#: What a rival has published wins in: four narrow layers on an H100, one on an RTX 5090 (0z5a/flashrnn).
RIVAL = (
    *(
        Case(cell, "layers", False, 32, B, 64, 64, dtype="float16", layers=4)
        for cell in ("lstm", "gru")
        for B in (1, 4, 16, 64)
    ),
    Case("lstm", "layers", False, 128, 16, 64, 64, dtype="bfloat16"),
)


@dataclass(frozen=True)
class Plane:
    """Cells, dtypes, batches and hidden sizes that are crossed with each other."""

    cells: Sequence[str]
    dtypes: Sequence[str]
    batches: Sequence[int]
    hidden: Sequence[int]


@dataclass(frozen=True)
class CudaPreset:
    """The most telling cases first: a run that has too little time leaves out the last.

    Attributes:
        first: cases before everything else. planes: single layers.
        form_cells, form_dtypes, form_shapes: cells, dtypes and (B, H) of two layers, two directions and
            packed rows.
        budget_s: what all timing together aims at, the parts of the run taken together. limit_s: what a run
            may take as a whole, or a part of one.
        own: the contenders beyond fastrnn and torch.nn that a case is for, where it is not for all.
    """

    first: Sequence[Case]
    planes: Sequence[Plane]
    form_cells: Sequence[str]
    form_dtypes: Sequence[str]
    form_shapes: Sequence[tuple[int, int]]
    budget_s: float
    limit_s: float
    own: dict[Case, tuple[str, ...]] | None = None


#: What cuDNN has a layer for.
_CUDNN_CELLS = tuple(c for c in CELLS if c not in BESIDE)
_ALL = ("float16", "bfloat16", "tf32", "float32")
_BATCHES, _HIDDEN = (1, 4, 16, 32, 64, 128, 256), (64, 128, 192, 256, 384, 512, 768, 1024, 2048)


def _one(cell: str, dtype: str, B: int, H: int, T: int = STEPS) -> Case:
    return Case(cell, "layers", False, T, B, H, H, dtype=dtype)


#: The few cases of contenders that compile for a minute or more each; FlashRNN's fused kernels for several.
_PEERS = {
    NAMED: ("compile", "compile_graphs", "flashrnn_step", "reference"),
    _one("lstm", "tf32", 16, 512): ("compile", "compile_graphs", "haste", "torchrl", "reference"),
    _one("gru", "tf32", 16, 256): ("compile_graphs", "haste", "torchrl"),
    _one("lstm", "float16", 16, 64): ("flashrnn_triton", "flashrnn_step"),
    _one("gru", "float16", 16, 512): ("compile_graphs", "flashrnn_step"),
    _one("lstm", "float32", 16, 128): ("haste", "torchrl"),
    replace(NAMED, dtype="bfloat16"): ("flashrnn",),
}
CUDA_PRESETS = {
    "quick": CudaPreset(
        first=(NAMED,),
        planes=(
            Plane(
                ("lstm",), ("float16", "bfloat16", "tf32"), (1, 16, 64, 256), (64, 128, 256, 512, 1024, 2048)
            ),
            Plane(("gru", "rnn"), ("float16",), (16, 64), (128, 512, 1024)),
            Plane(("lstm",), ("float32",), (16,), (64, 512)),
        ),
        form_cells=("lstm",),
        form_dtypes=("float16",),
        form_shapes=((16, 128), (64, 512), (16, 1024)),
        budget_s=200.0,
        limit_s=330.0,
    ),
    # Of fifteen minutes with a GPU: where cuDNN is at its best, what a rival has published, then the main
    # plane.
    "gpu-check": CudaPreset(
        first=(NAMED, *RIVAL),
        planes=(
            Plane(("lstm", "gru"), ("float16", "bfloat16", "tf32"), (1, 16, 64), (64, 128, 256, 512, 1024)),
        ),
        form_cells=(),
        form_dtypes=(),
        form_shapes=(),
        budget_s=150.0,
        limit_s=175.0,
    ),
    "full": CudaPreset(
        first=tuple(replace(NAMED, dtype=dtype) for dtype in _ALL),
        planes=(Plane(_CUDNN_CELLS, _ALL, _BATCHES, _HIDDEN),),
        form_cells=_CUDNN_CELLS,
        form_dtypes=_ALL,
        form_shapes=((1, 256), (16, 128), (16, 1024), (64, 512), (256, 256)),
        budget_s=2400.0,
        limit_s=540.0,
    ),
    "peers": CudaPreset(
        first=tuple(_PEERS),
        planes=(),
        form_cells=(),
        form_dtypes=(),
        form_shapes=(),
        budget_s=60.0,
        limit_s=540.0,
        own=_PEERS,
    ),
}


def _every(preset: CudaPreset) -> Iterator[Case]:
    yield from preset.first
    for plane in preset.planes:
        for dtype in plane.dtypes:
            for cell in plane.cells:
                for B in plane.batches:
                    for H in plane.hidden:
                        yield _one(cell, dtype, B, H)
    for dtype in preset.form_dtypes:
        for cell in preset.form_cells:
            for form in FORMS:
                for B, H in preset.form_shapes:
                    yield replace(_one(cell, dtype, B, H), **form)


def select_cuda(
    preset: CudaPreset,
    *,
    cells: Sequence[str] = (),
    shapes: Sequence[tuple[int, int, int]] = (),
    dtypes: Sequence[str] = (),
    modes: Sequence[str] = (),
    device: str = "cuda",
    part: tuple[int, int] = (1, 1),
) -> list[Case]:
    """The preset's cases that pass the filters, forward and training; shapes (T, B, H) replace the planes.

    part: (k, n) for the k-th of n parts, 1 to n: each n-th case, so that all take about as long.
    """
    works = [w for w in WORK if w in modes] or list(WORK)
    paths = [m for m in modes if m not in WORK]
    if shapes:
        base = [
            Case(cell, path, False, T, B, H, H, dtype=dtype, P=max(1, H // 2) if path == "proj" else 0)
            for dtype in dtypes or ("float32",)
            for path in paths or ("layers",)
            for cell in cells or _CUDNN_CELLS
            for T, B, H in shapes
            if cell == "lstm" or path not in ("packed", "proj")
        ]
    else:
        base = list(dict.fromkeys(_every(preset)))
    chosen = [
        c
        for c in base
        if (not cells or c.cell in cells)
        and (not dtypes or c.dtype in dtypes)
        and (not paths or c.path in paths)
    ]
    return [
        replace(c, training=work == "training", device=device)
        for c in chosen[part[0] - 1 :: part[1]]
        for work in works
    ]


def limit_s(preset: CudaPreset, parts: int) -> float:
    """Seconds that a part of so many may take; what is not timing included."""
    return max(preset.limit_s, 1.35 * preset.budget_s / parts)


def parse_part(text: str) -> tuple[int, int]:
    """ "2/6" as (2, 6)."""
    try:
        k, n = (int(number) for number in text.split("/"))
    except ValueError:
        raise ValueError(f"a part is k/n, such as 2/6; got {text!r}") from None
    if not 1 <= k <= n:
        raise ValueError(f"a part is k/n with k from 1 to n; got {text!r}")
    return k, n


def excluded(preset: CudaPreset, cases: Sequence[Case]) -> dict[Case, dict[str, str]]:
    """The contenders that a preset's case is not for."""
    if preset.own is None:
        return {}
    plain = {case: replace(case, training=False, device=NAMED.device) for case in cases}
    why = "in its own few cases only"
    return {
        case: {k: why for k in (*CUDA_PEERS, "reference") if k not in preset.own[plain[case]]}
        for case in cases
        if plain[case] in preset.own
    }
