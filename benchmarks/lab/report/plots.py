"""A run's plots as PNG: time against hidden size, ratios over torch.nn, share of the machine's limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .. import targets
from ..contenders.registry import KEYS, NAMES
from ..results import case_of, group_results, share_of_limit
from .style import COLORS, MARKERS, Picture, duration, log_axis

#: Inches that the heading of a figure takes: a line for the title, one for the legend.
_HEADING = 0.72


def _head(figure: Figure, title: str, handles: dict) -> None:
    """Title and legend over the panels, which leave _HEADING inches for them."""
    height = figure.get_figheight()
    figure.suptitle(title, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=12.5, fontweight="bold")
    order = [k for k in KEYS if k in handles]
    figure.legend(
        [handles[k] for k in order],
        [NAMES[k] for k in order],
        loc="upper left",
        ncols=len(order),
        bbox_to_anchor=(0.004, 1 - 0.34 / height),
        columnspacing=1.5,
        handletextpad=0.5,
        borderpad=0.2,
    )


def hidden_sizes(run: dict, threads: int, training: bool) -> Figure | None:
    """Time against hidden size: a row for each cell, a column for each batch. None without a series."""
    work = "training" if training else "inference"
    rows = {
        g: rs
        for g, rs in group_results(run, threads, sweep=True).items()
        if case_of(rs[0]).training == training
    }
    batches = sorted({case_of(r).B for rs in rows.values() for r in rs})
    if not rows:
        return None
    height = 2.6 * len(rows) + 0.3 + _HEADING
    figure = Figure(figsize=(3.5 * len(batches) + 0.6, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - _HEADING / height))
    grid = figure.subplots(len(rows), len(batches), sharex=True, squeeze=False)
    handles = {}
    for axes, (group, results) in zip(grid, rows.items(), strict=True):
        for ax, batch in zip(axes, batches, strict=True):
            here = sorted((r for r in results if batch == case_of(r).B), key=lambda r: case_of(r).H)
            times = []
            for key in reversed(KEYS):
                points = [
                    (case_of(r).H, r["contenders"][key]["median_s"]) for r in here if key in r["contenders"]
                ]
                if not points:
                    continue
                x, y = zip(*points, strict=True)
                times += y
                first = key == "fastrnn"
                (handles[key],) = ax.plot(
                    x,
                    y,
                    color=COLORS[key],
                    marker=MARKERS[key],
                    markersize=5.5 if first else 4.5,
                    linewidth=2.4 if first else 1.3,
                    linestyle="--" if key == "reference" else "-",
                    zorder=4 if first else 3,
                )
            sizes = [case_of(r).H for r in here]
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.xaxis.set_major_locator(FixedLocator(sizes))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}"))
            ax.xaxis.set_minor_locator(NullLocator())
            low, high = min(times) / 1.4, max(times) * 1.4
            ax.set_ylim(low, high)
            log_axis(ax.yaxis, low, high, duration)
            ax.grid(True)
            ax.set_title(f"{group}, B = {batch}", loc="left")
    for ax in grid[-1]:
        ax.set_xlabel("hidden size H")
    steps = case_of(next(iter(rows.values()))[0]).T
    title = f"{work.capitalize()} of {steps} steps, {targets.plural(threads, 'thread')}"
    _head(figure, title, handles)
    return figure


def _panels(counts: Sequence[int]) -> tuple[Figure, list]:
    """Two columns of panels; counts: bars in each, a row being as high as its fuller panel needs."""
    pairs = [max(counts[n : n + 2]) for n in range(0, len(counts), 2)]
    heights = [0.27 * bars + 0.62 for bars in pairs]
    height = sum(heights) + 0.2 + _HEADING
    figure = Figure(figsize=(11.5, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - _HEADING / height), hspace=0.04, wspace=0.03)
    grid = figure.subplots(len(pairs), 2, squeeze=False, height_ratios=heights).ravel()
    for ax in grid[len(counts) :]:
        ax.set_visible(False)
    return figure, list(grid[: len(counts)])


def _name_rows(ax, results: Sequence[dict]) -> list[int]:
    """T,B,H as labels of a horizontal bar chart, first on top; the positions."""
    positions = list(range(len(results)))
    ax.set_yticks(positions, ["{0.T},{0.B},{0.H}".format(case_of(r)) for r in results])
    ax.set_ylim(len(results) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    return positions


def ratios(run: dict, threads: int) -> Figure | None:
    """How many times faster than torch.nn: bars for fastrnn, marks for the others. None without fastrnn."""
    groups = {
        g: [r for r in rs if targets.ratio(r, ("torch",))] for g, rs in group_results(run, threads).items()
    }
    groups = {g: rs for g, rs in groups.items() if rs}
    if not groups:
        return None
    title = f"Times faster than torch.nn, {targets.plural(threads, 'thread')} (rows: T,B,H)"
    figure, panels = _panels([len(rs) for rs in groups.values()])
    handles = {}
    for ax, (group, results) in zip(panels, groups.items(), strict=True):
        positions = _name_rows(ax, results)
        values = [targets.ratio(r, ("torch",))[0] for r in results]
        # From 1 on: to the right where fastrnn is faster, to the left where it is slower.
        lengths = [v - 1 for v in values]
        handles["fastrnn"] = ax.barh(
            positions, lengths, left=1, height=0.62, color=COLORS["fastrnn"], alpha=0.9
        )
        everything = list(values)
        for key in (k for k in KEYS if k not in ("fastrnn", "torch", "reference")):
            points = [
                (r["contenders"]["torch"]["median_s"] / r["contenders"][key]["median_s"], p)
                for r, p in zip(results, positions, strict=True)
                if key in r["contenders"]
            ]
            if points:
                x, y = zip(*points, strict=True)
                everything += x
                handles[key] = ax.scatter(
                    x,
                    y,
                    color=COLORS[key],
                    marker=MARKERS[key],
                    s=34,
                    zorder=5,
                    edgecolor="white",
                    linewidth=0.7,
                )
        low, high = min(0.7, 0.85 * min(everything)), 1.15 * max(*everything, 2.0)
        ax.set_xscale("log")
        # Values stand beside the panel, where neither bars nor marks can cover them.
        ax.set_xlim(low, high)
        log_axis(ax.xaxis, low, high, lambda v, _: f"{v:g}")
        for value, position in zip(values, positions, strict=True):
            ax.annotate(
                f"{value:.2f}x",
                (1.0, position),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=COLORS["fastrnn"] if value >= 1 else COLORS["jax"],
                fontweight="bold",
                annotation_clip=False,
            )
        ax.axvline(1.0, color="#37424d", linewidth=1.1, zorder=4)
        ax.grid(True, axis="x")
        ax.set_title(group, loc="left")
    _head(figure, title, handles)
    return figure


def limit(run: dict, threads: int) -> Figure | None:
    """Share of the machine's limit that fastrnn and torch.nn reach. None without results."""
    groups = group_results(run, threads)
    if not groups:
        return None
    title = f"Share of the machine's limit, {targets.plural(threads, 'thread')} (rows: T,B,H)"
    figure, panels = _panels([len(rs) * 1.3 for rs in groups.values()])
    handles = {}
    for ax, (group, results) in zip(panels, groups.items(), strict=True):
        positions = _name_rows(ax, results)
        for key, offset in (("fastrnn", -0.19), ("torch", 0.19)):
            shares = [(share_of_limit(r, key), p) for r, p in zip(results, positions, strict=True)]
            shares = [(100 * s, p + offset) for s, p in shares if s is not None]
            if not shares:
                continue
            width, y = zip(*shares, strict=True)
            handles[key] = ax.barh(y, [min(w, 100) for w in width], height=0.36, color=COLORS[key], alpha=0.9)
            for w, p in shares:
                ax.text(min(w, 100) + 1, p, f"{w:.0f}", va="center", fontsize=8, color=COLORS[key])
        ax.set_xlim(0, 108)
        ax.set_xticks(range(0, 101, 20), [f"{v}%" for v in range(0, 101, 20)])
        ax.grid(True, axis="x")
        ax.set_title(group, loc="left")
    _head(figure, title, handles)
    return figure


def figures(run: dict) -> Iterator[Picture]:
    """Every picture that the run has data for."""
    for threads in run["threads"]:
        on = targets.plural(threads, "thread")
        yield f"ratios-{threads}t.png", f"Times faster than torch.nn, {on}", ratios(run, threads)
        yield f"limit-{threads}t.png", f"Share of the machine's limit, {on}", limit(run, threads)
        for training in (False, True):
            work = "training" if training else "inference"
            caption = f"{work.capitalize()} time against hidden size, {on}"
            yield f"hidden-{work}-{threads}t.png", caption, hidden_sizes(run, threads, training)
