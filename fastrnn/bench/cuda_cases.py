"""What is timed on a GPU: the plane of hidden sizes and batches, and the modules' other forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .cases import CELLS, SRU_CELLS, WORK, Case

#: Steps of every case: enough that what a call costs once does not show.
STEPS = 128
#: B, H of the cases with two layers, two directions or packed rows.
FORM_SHAPES = ((16, 128), (64, 512), (16, 1024))
FORMS = ({"layers": 2}, {"directions": 2}, {"path": "packed"})


@dataclass(frozen=True)
class Plane:
    """Cells, dtypes, batches and hidden sizes that are crossed with each other."""

    cells: Sequence[str]
    dtypes: Sequence[str]
    batches: Sequence[int]
    hidden: Sequence[int]


@dataclass(frozen=True)
class CudaPreset:
    """Planes, and the dtypes of the other forms. budget_s is what all timing together aims at."""

    planes: Sequence[Plane]
    form_dtypes: Sequence[str]
    budget_s: float


#: What cuDNN has a layer for.
_CUDNN_CELLS = tuple(c for c in CELLS if c not in SRU_CELLS)
_ALL = ("float16", "bfloat16", "tf32", "float32")
CUDA_PRESETS = {
    "quick": CudaPreset(
        planes=(
            Plane(
                ("lstm",), ("float16", "bfloat16", "tf32"), (1, 16, 64, 256), (64, 128, 256, 512, 1024, 2048)
            ),
            Plane(("gru", "rnn"), ("float16",), (16, 64), (128, 512, 1024)),
            Plane(("lstm",), ("float32",), (16,), (64, 512)),
        ),
        form_dtypes=("float16",),
        budget_s=100.0,
    ),
    "full": CudaPreset(
        planes=(
            Plane(
                _CUDNN_CELLS,
                _ALL,
                (1, 4, 16, 32, 64, 128, 256),
                (64, 128, 192, 256, 384, 512, 768, 1024, 2048),
            ),
        ),
        form_dtypes=_ALL,
        budget_s=1200.0,
    ),
}


def _every(preset: CudaPreset) -> Iterator[Case]:
    for plane in preset.planes:
        for dtype in plane.dtypes:
            for cell in plane.cells:
                for B in plane.batches:
                    for H in plane.hidden:
                        yield Case(cell, "layers", False, STEPS, B, H, H, dtype=dtype)
    for dtype in preset.form_dtypes:
        for form in FORMS:
            for B, H in FORM_SHAPES:
                yield Case(
                    "lstm", form.get("path", "layers"), False, STEPS, B, H, H, dtype=dtype, **_sizes(form)
                )


def _sizes(form: dict) -> dict:
    return {name: value for name, value in form.items() if name != "path"}


def select(
    preset: CudaPreset,
    *,
    cells: Sequence[str] = (),
    shapes: Sequence[tuple[int, int, int]] = (),
    dtypes: Sequence[str] = (),
    modes: Sequence[str] = (),
    device: str = "cuda",
) -> list[Case]:
    """The preset's cases that pass the filters, forward and training; shapes (T, B, H) replace the planes."""
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
        Case(**{**c.to_dict(), "training": work == "training", "device": device})
        for c in chosen
        for work in works
    ]
