"""The convex hull of 5 to 10 points, as pointers to its corners. PointerNetwork."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import ClassVar

import _demo
import torch
from _run import main
from torch import Tensor

from fastrnn.models import PointerNetwork

FEWEST, MOST = 5, 10


def cross(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Twice the area of the triangle a, b, c (..., 2), positive if it runs counterclockwise."""
    u, v = b - a, c - a
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def convex_hull(points: Tensor, lengths: Tensor) -> Tensor:
    """Corners of the hulls of points (S, B, 2), counterclockwise from the leftmost: (S+1, B) numbers from 1,
    and 0 from the end on. Two points are neighbours on it if all others are to the left of their line."""
    steps, rows, _ = points.shape
    p = points.transpose(0, 1)
    valid = torch.arange(steps) < lengths.unsqueeze(1)
    sides = cross(p[:, :, None, None], p[:, None, :, None], p[:, None, None, :])
    edges = ((sides >= 0) | ~valid[:, None, None, :]).all(3) & valid[:, :, None] & valid[:, None, :]
    following = (edges & ~torch.eye(steps, dtype=torch.bool)).long().argmax(2)
    corner = first = p[..., 0].masked_fill(~valid, torch.inf).argmin(1)
    hull = torch.zeros(steps + 1, rows, dtype=torch.int64)
    closed = torch.zeros(rows, dtype=torch.bool)
    for step in range(steps):
        hull[step] = (corner + 1).masked_fill(closed, 0)
        corner = following.gather(1, corner.unsqueeze(1)).squeeze(1)
        closed |= corner == first
    return hull


def is_polygon(corners: Tensor) -> bool:
    """Whether corners (n, 2) make a polygon: at least three, and no two sides that cross."""
    n = len(corners)
    if n < 3:
        return False
    for i, j in combinations(range(n), 2):
        if j - i in (1, n - 1):  # neighbours share a corner
            continue
        a, b, c, d = (corners[k % n] for k in (i, i + 1, j, j + 1))
        apart = cross(a, b, c) * cross(a, b, d) > 0 or cross(c, d, a) * cross(c, d, b) > 0
        if not apart:
            return False
    return True


def area(corners: Tensor) -> float:
    """Of a polygon (n, 2)."""
    following = corners.roll(-1, 0)
    return 0.5 * abs((corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]).sum().item())


class Demo(_demo.Demo):
    title = "PointerNetwork: the convex hull of 5 to 10 points"
    steps, quick_steps = 3000, 150
    targets: ClassVar = {"exact": (">=", 0.7), "valid": (">=", 0.98), "area": (">=", 0.98)}
    quick_targets: ClassVar = {"corners": (">=", 0.6)}
    learning_rate = 3e-3
    rows = 128

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.model = PointerNetwork(2, 64, bidirectional=True)

    @staticmethod
    def _draw(generator: torch.Generator, rows: int) -> tuple[Tensor, Tensor]:
        """Points (MOST, B, 2) in the square from -1 to 1, and how many of them count."""
        lengths = torch.randint(FEWEST, MOST + 1, (rows,), generator=generator)
        return torch.rand(MOST, rows, 2, generator=generator) * 2 - 1, lengths

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        points, lengths = self._draw(self.generator, self.rows)
        return points, convex_hull(points, lengths), lengths

    def loss(self, points: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        return -self.model.log_prob(points, target, lengths).sum() / (target > 0).sum()

    def score(self) -> dict[str, float]:
        """On 500 new sets of points, by beam search with 4 beams: how many hulls are exact, how many answers
        are polygons, their mean area over the hull's (0 for what is no polygon), and the part of the corners
        that were found."""
        points, lengths = self._draw(torch.Generator().manual_seed(1), 500)
        hulls = convex_hull(points, lengths)
        found = self.model.generate(points, lengths, beam_size=4)
        exact = valid = corners = 0
        areas = 0.0
        for b in range(len(lengths)):
            hull = hulls[hulls[:, b] > 0, b] - 1
            answer = found.tokens[: found.lengths[b, 0], b, 0] - 1
            exact += torch.equal(hull, answer)
            corners += len(set(hull.tolist()) & set(answer.tolist())) / len(hull)
            if is_polygon(points[answer, b]):
                valid += 1
                areas += area(points[answer, b]) / area(points[hull, b])
        return {
            name: v / len(lengths)
            for name, v in {"exact": exact, "valid": valid, "area": areas, "corners": corners}.items()
        }

    def sample(self) -> str:
        points, lengths = self._draw(torch.Generator().manual_seed(2), 6)
        hulls = convex_hull(points, lengths)
        found = self.model.generate(points, lengths, beam_size=4)
        lines = []
        for b, n in enumerate(lengths.tolist()):
            hull = hulls[hulls[:, b] > 0, b].tolist()
            answer = found.tokens[: found.lengths[b, 0], b, 0].tolist()
            verdict = "" if answer == hull else f"  wrong: {' '.join(map(str, hull))}"
            lines.append(f"hull of {n:2} points: {' '.join(map(str, answer))}{verdict}")
        return "\n".join(lines)

    def picture(self, path: Path) -> None:
        """The pointer's tour over six sets of points."""
        from matplotlib.figure import Figure

        points, lengths = self._draw(torch.Generator().manual_seed(4), 6)
        hulls = convex_hull(points, lengths)
        found = self.model.generate(points, lengths, beam_size=4)
        figure = Figure(figsize=(10, 7), layout="constrained")
        for b, axes in enumerate(figure.subplots(2, 3, sharex=True, sharey=True).flat):
            answer = found.tokens[: found.lengths[b, 0], b, 0] - 1
            hull = hulls[hulls[:, b] > 0, b] - 1
            tour = points[torch.cat([answer, answer[:1]]), b]
            axes.fill(*points[hull, b].t(), color="tab:green", alpha=0.15, label="convex hull")
            axes.plot(*tour.t(), "-", color="tab:blue", label="pointer's tour")
            axes.plot(*points[: lengths[b], b].t(), "o", color="black", ms=4, label="points")
            outward = tour[:-1] - points[: lengths[b], b].mean(0)
            outward = 11 * outward / outward.norm(dim=1, keepdim=True)
            for i, (corner, offset) in enumerate(zip(tour.tolist(), outward.tolist(), strict=False), 1):
                axes.annotate(
                    str(i),
                    corner,
                    xytext=offset,
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    color="tab:blue",
                )
            axes.set(title=f"{lengths[b]} points, " + ("exact" if torch.equal(hull, answer) else "wrong"))
            axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
        figure.supxlabel("x")
        figure.supylabel("y")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(Demo)
