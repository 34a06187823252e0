"""Ratios over the plane of batches and hidden sizes, a table for each kind of work: how a GPU run is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import targets
from .cases import Case
from .document import Table

#: Below this fastrnn is slower: such cells are marked.
EVEN = 1.0


@dataclass
class Plane:
    """One kind of work: ratio over torch.nn by (B, H), above 1 where fastrnn is faster."""

    title: str
    ratios: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def batches(self) -> list[int]:
        return sorted({b for b, _ in self.ratios})

    @property
    def hidden(self) -> list[int]:
        return sorted({h for _, h in self.ratios})


def planes(results: Sequence[dict]) -> list[Plane]:
    """The results on GPUs by kind of work, in the order they ran. Cases that failed leave a hole."""
    found: dict[str, Plane] = {}
    for result in results:
        case = Case(**result["case"])
        if not case.device.startswith("cuda"):
            continue
        plane = found.setdefault(case.group, Plane(f"{case.group}, T={case.T}"))
        value = targets.ratio(result, targets.TORCH)
        if value is not None:
            plane.ratios[case.B, case.H] = value[0]
    return [plane for plane in found.values() if plane.ratios]


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
    rows = []
    for plane in found:
        values = list(plane.ratios.values())
        worst = min(plane.ratios, key=plane.ratios.get)
        slower = sum(v < EVEN for v in values)
        rows.append(
            [
                plane.title,
                str(len(values)),
                f"{targets.geomean(values):.2f}x",
                f"{plane.ratios[worst]:.2f}x (B={worst[0]}, H={worst[1]})",
                f"{max(values):.2f}x",
                f"**{slower}**" if slower else "0",
            ]
        )
    return Table(["", "cases", "geometric mean", "worst", "best", "slower than torch.nn"], rows)
