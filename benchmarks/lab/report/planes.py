"""Ratios over the plane of batches and hidden sizes, a table for each kind of work: how a GPU run is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import targets
from ..cases import Case
from .document import Table

#: Below this fastrnn is slower: such cells are marked.
EVEN = 1.0


@dataclass
class Plane:
    """One kind of work: ratio over torch.nn by (B, H), above 1 where fastrnn is faster. case: one of it."""

    case: Case
    ratios: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.case.group}, T={self.case.T}"

    @property
    def batches(self) -> list[int]:
        return sorted({b for b, _ in self.ratios})

    @property
    def hidden(self) -> list[int]:
        return sorted({h for _, h in self.ratios})


def read(results: Sequence[dict]) -> list[Plane]:
    """The results on GPUs by kind of work and steps, in the order they ran. What failed leaves a hole."""
    found: dict[tuple[str, int], Plane] = {}
    for result in results:
        case = Case(**result["case"])
        if not case.device.startswith("cuda"):
            continue
        plane = found.setdefault((case.group, case.T), Plane(case))
        value = targets.ratio(result, targets.TORCH)
        if value is not None:
            plane.ratios[case.B, case.H] = value[0]
    return [plane for plane in found.values() if plane.ratios]


def is_map(plane: Plane) -> bool:
    """Whether it has both sides of a rectangle: other forms of modules are timed in a few places only."""
    return len(plane.batches) > 1 and len(plane.hidden) > 1 and len(plane.ratios) > 3


def table(plane: Plane) -> Table:
    """Batches down, hidden sizes across; bold where torch.nn is faster."""
    rows = []
    for b in plane.batches:
        row = [f"B={b}"]
        for h in plane.hidden:
            value = plane.ratios.get((b, h))
            text = "–" if value is None else f"{value:.2f}x"
            row.append(f"**{text}**" if value is not None and value < EVEN else text)
        rows.append(row)
    return Table([plane.title, *(f"H={h}" for h in plane.hidden)], rows)


def summary(found: Sequence[Plane]) -> Table:
    """A line for each plane: geometric mean, worst, best, and in how many cases torch.nn was faster."""
    rows = [[plane.title, *spread(list(plane.ratios.items()))] for plane in found]
    return Table(["", *SPREAD], rows)


#: Columns of spread().
SPREAD = ("cases", "geometric mean", "worst", "best", "slower than torch.nn")


def spread(ratios: Sequence[tuple[tuple[int, int], float]]) -> list[str]:
    """Cells of a table about ratios at (B, H)."""
    values = [value for _, value in ratios]
    (B, H), worst = min(ratios, key=lambda r: r[1])
    slower = sum(v < EVEN for v in values)
    return [
        str(len(values)),
        f"{targets.geomean(values):.2f}x",
        f"{worst:.2f}x (B={B}, H={H})",
        f"{max(values):.2f}x",
        f"**{slower}**" if slower else "0",
    ]
