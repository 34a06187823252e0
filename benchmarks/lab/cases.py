"""What is timed: a case is one layer (or cell), one shape, one direction of work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

CELLS = ("lstm", "gru", "rnn", "sru", "srupp")
#: Those without a product in the recurrence. torch.nn has none: its LSTM stands beside them.
SRU_CELLS = ("sru", "srupp")
WORK = ("inference", "training")
PATHS = ("layers", "packed", "proj", "cells")
MODES = (*WORK, *PATHS)
#: "tf32" is float32 whose products may round to TensorFloat-32, on a GPU.
DTYPES = ("float32", "float64", "bfloat16", "float16", "tf32")

GATES = {"lstm": 4, "gru": 3, "rnn": 1, "sru": 3, "srupp": 3}

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

#: T, B, H of the SRU cases.
SRU_SHAPES = ((1, 1, 512), (100, 1, 512), (100, 16, 128), (100, 32, 256), (100, 32, 512), (50, 64, 1024))

#: B, H of the single-step modules.
CELL_SHAPES = ((1, 256), (32, 256), (1, 512), (32, 512))


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        cell: "lstm", "gru", "rnn" (tanh), "sru" or "srupp" (SRU++ with a quarter of H as its projection).
        path: "layers" whole sequences, "packed" a PackedSequence with lengths of 10-100% of T, "proj" an LSTM
            with projection, "cells" a single step.
        training: forward and backward (gradients of the input and of every weight) instead of forward alone.
        T, B, I, H: steps, batch rows, inputs, hidden units. P: projected units, 0 without; in SRU++ those
            of the attention.
        sweep: part of the series over hidden sizes that is plotted, not of the tables.
        layers, directions: of the module; 1 but on a GPU.
    """

    cell: str
    path: str
    training: bool
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    P: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    sweep: bool = False
    layers: int = 1
    directions: int = 1

    @property
    def storage(self) -> str:
        """torch's name of the dtype."""
        return "float32" if self.dtype == "tf32" else self.dtype

    @property
    def work(self) -> str:
        return "training" if self.training else "inference"

    @property
    def shape(self) -> str:
        inputs = "" if self.I == self.H else f",I={self.I}"
        projected = f",P={self.P}" if self.P else ""
        return f"{self.T},{self.B},{self.H}{inputs}{projected}"

    @property
    def group(self) -> str:
        """Cases of a group share a table: "LSTM inference", "LSTM packed training", "GRUCell inference"."""
        if self.path == "cells":
            name = f"{self.cell.upper()}Cell"
        elif self.cell == "srupp":
            name = "SRU++"
        else:
            name = self.cell.upper() + {"layers": "", "packed": " packed", "proj": " projected"}[self.path]
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        layers = f" {self.layers} layers" if self.layers > 1 else ""
        way = " bidirectional" if self.directions == 2 else ""
        return f"{name}{layers}{way} {self.work}{dtype}"

    @property
    def title(self) -> str:
        return f"{self.group} T={self.T} B={self.B} H={self.H}"

    def lengths(self) -> list[int] | None:
        """Lengths of a packed case's rows, longest first: from T down to a tenth of it, evenly."""
        if self.path != "packed":
            return None
        last = max(1, round(self.T / 10))
        return [round(self.T - (self.T - last) * b / max(1, self.B - 1)) for b in range(self.B)]

    def to_dict(self) -> dict:
        return asdict(self)


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
        sweep_steps=16,
        sweep_batches=(1, 16, 64),
        sweep_hidden=(64, 128, 256, 512, 1024),
        sweep_work=WORK,
        scaling_shapes=tuple(s for s in SHAPES if s[1] >= 16),
        memory_shapes=((100, 32, 256), (50, 64, 512), (50, 64, 1024)),
        budget_s=300.0,
    ),
}


def parse_shape(text: str) -> tuple[int, int, int]:
    """ "T,B,H" as three positive integers."""
    try:
        T, B, H = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise ValueError(f"a shape is T,B,H, such as 100,16,128; got {text!r}") from None
    if min(T, B, H) < 1:
        raise ValueError(f"a shape's sizes are positive; got {text!r}")
    return T, B, H


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

    def add(cell, path, T, B, H, P=0, sweep=False, over=works):
        cases.extend(Case(cell, path, w == "training", T, B, H, H, P=P, sweep=sweep) for w in over)

    for path in paths:
        if path == "cells":
            sizes = list(dict.fromkeys((B, H) for _, B, H in shapes)) if shapes else preset.cell_shapes
            for cell in ("lstm", "gru"):
                for B, H in sizes:
                    add(cell, path, 1, B, H)
            continue
        own = {"layers": preset.shapes, "packed": preset.packed_shapes, "proj": preset.proj_shapes}[path]
        for cell in CELLS if path == "layers" else ("lstm",):
            sru = cell in SRU_CELLS
            for T, B, H in shapes or (preset.sru_shapes if sru else own):
                P = max(1, H // 2) if path == "proj" else max(1, H // 4) if cell == "srupp" else 0
                add(cell, path, T, B, H, P=P)
    if "layers" in paths and not shapes:
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
