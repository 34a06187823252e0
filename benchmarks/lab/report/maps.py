"""Pictures of a GPU run: ratios over the plane, a map for each dtype and kind of work; time a step over H."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..cases import WORK
from ..contenders.registry import CUDA_PEERS, NAMES
from ..presets import STEPS
from .against_cudnn import STEP_BATCHES, Step, steps
from .planes import EVEN, Plane, is_map, read
from .style import COLORS, MARKERS, Picture, log_axis

#: Twice as fast is as far from even as half as fast; more than this many times is as dark.
_DARKEST = 16.0
#: Few colours, so that a picture of 256 keeps them.
_COLORS = matplotlib.colormaps["PRGn"].resampled(33)
#: Time a step is drawn of these, where it differs most.
_STEP_DTYPES = ("float16", "tf32")
_FLOOR = "#37424d"


def heat_map(planes: Sequence[Plane], title: str) -> Figure:
    """A cell's maps: a row for each dtype, inference and training side by side; B down, H across."""
    dtypes = list(dict.fromkeys(p.case.dtype for p in planes))
    columns = [work for work in WORK if any(p.case.work == work for p in planes)]
    largest = max(len(p.hidden) for p in planes)
    heights = [0.36 * max(len(p.batches) for p in planes if p.case.dtype == d) + 0.75 for d in dtypes]
    height = sum(heights) + 1.3
    figure = Figure(figsize=((0.62 * largest + 1.1) * len(columns) + 0.3, height), layout="constrained")
    grid = figure.subplots(len(dtypes), len(columns), squeeze=False, height_ratios=heights)
    for ax in grid.ravel():
        ax.set_visible(False)
    shown = None
    for plane in planes:
        ax = grid[dtypes.index(plane.case.dtype), columns.index(plane.case.work)]
        ax.set_visible(True)
        values = np.full((len(plane.batches), len(plane.hidden)), np.nan)
        for (b, h), value in plane.ratios.items():
            values[plane.batches.index(b), plane.hidden.index(h)] = value
        bound = np.log2(_DARKEST)
        shown = ax.imshow(np.log2(values), cmap=_COLORS, vmin=-bound, vmax=bound, aspect="auto")
        ax.set_facecolor("#d5dae0")  # not timed
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ax.text(
                    column,
                    row,
                    f"{value:.2f}" if value < 10 else f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if abs(np.log2(value)) > 0.75 * bound else "#1c2733",
                    fontweight="bold" if value < EVEN else "normal",
                )
        ax.set_xticks(range(len(plane.hidden)), [f"{h}" for h in plane.hidden])
        ax.set_yticks(range(len(plane.batches)), [f"{b}" for b in plane.batches])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("hidden size H")
        ax.set_ylabel("batch B")
        ax.set_title(f"{plane.case.dtype}, {plane.case.work}, T = {plane.case.T}", loc="left")
    marks = [1 / 4, 1 / 2, 1, 2, 4, 16]
    bar = figure.colorbar(
        shown,
        ax=list(grid.ravel()),
        location="bottom",
        shrink=0.6,
        fraction=0.3 / height,
        pad=0.1 / height,
        aspect=40,
    )
    bar.set_ticks([np.log2(m) for m in marks], labels=[f"{m:.2g}x" for m in marks])
    bar.outline.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    return figure


def heat_maps(run: dict) -> dict[str, Figure]:
    """By cell, where it has a map."""
    planes = [p for p in read(run["results"]) if is_map(p)]
    plain = [p for p in planes if (p.case.path, p.case.layers, p.case.directions) == ("layers", 1, 1)]
    cells = dict.fromkeys(p.case.cell for p in plain)
    return {
        cell: heat_map(
            [p for p in plain if p.case.cell == cell], f"{cell.upper()}: times faster than torch.nn"
        )
        for cell in cells
    }


def step_times(found: Sequence[Step], title: str) -> Figure | None:
    """Microseconds a step over H, a column for each batch; the floor dashed. None without a series."""
    found = [s for s in found if s.case.T == STEPS]
    hidden = {b: {s.case.H for s in found if b == s.case.B} for b in STEP_BATCHES}
    batches = [b for b in STEP_BATCHES if len(hidden[b]) > 2]
    works = [w for w in WORK if any(s.case.work == w for s in found)]
    if not batches:
        return None
    figure = Figure(
        figsize=(max(7.0, 3.3 * len(batches) + 0.4), 2.9 * len(works) + 0.9), layout="constrained"
    )
    grid = figure.subplots(len(works), len(batches), sharex=True, squeeze=False)
    handles: dict[str, object] = {}
    for axes, work in zip(grid, works, strict=True):
        for ax, batch in zip(axes, batches, strict=True):
            here = sorted(
                (s for s in found if (s.case.B, s.case.work) == (batch, work)), key=lambda s: s.case.H
            )
            if not here:
                ax.set_visible(False)
                continue
            series = {"floor": [(s.case.H, s.floor.us) for s in here]}
            for key in ("fastrnn", "torch", *CUDA_PEERS):
                if points := [(s.case.H, s.us[key]) for s in here if key in s.us]:
                    series[key] = points
            for key, points in series.items():
                style = {"color": _FLOOR, "linestyle": "--", "linewidth": 1.2}
                if key != "floor":
                    style = {"color": COLORS[key], "marker": MARKERS[key], "markersize": 4.5}
                    style["linewidth"] = 2.4 if key == "fastrnn" else 1.3
                (handles[key],) = ax.plot(*zip(*points, strict=True), **style)
            sizes = sorted({s.case.H for s in here})
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.xaxis.set_major_locator(FixedLocator([h for h in sizes if h & (h - 1) == 0] or sizes))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}"))
            ax.xaxis.set_minor_locator(NullLocator())
            times = [us for points in series.values() for _, us in points]
            low, high = min(times) / 1.4, max(times) * 1.4
            ax.set_ylim(low, high)
            log_axis(ax.yaxis, low, high, lambda v, _: f"{v:g}")
            ax.grid(True)
            ax.set_title(f"{work}, B = {batch}", loc="left")
    for ax in grid[-1]:
        ax.set_xlabel("hidden size H")
    for axes in grid:
        axes[0].set_ylabel("µs a step")
    names = {"floor": "floor"} | NAMES
    figure.legend(
        list(handles.values()), [names[k] for k in handles], loc="outside lower left", ncols=len(handles)
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    return figure


def figures(run: dict) -> Iterator[Picture]:
    """Every picture that the run has data for."""
    for cell, figure in heat_maps(run).items():
        caption = f"{cell.upper()}: times faster than torch.nn, by batch and hidden size"
        yield f"heat-map-{cell}.png", caption, figure
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in steps(run):
        groups.setdefault((step.case.cell, step.case.dtype), []).append(step)
    for (cell, dtype), found in groups.items():
        if dtype in _STEP_DTYPES:
            title = f"{cell.upper()}, {dtype}: time a step"
            yield f"steps-{cell}-{dtype}.png", f"{title}, and the floor", step_times(found, title)
