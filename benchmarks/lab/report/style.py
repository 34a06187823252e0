"""How pictures look: colours, axes, and how a figure becomes a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from ..contenders.registry import ROWS

COLORS = {row.key: row.color for row in ROWS}
MARKERS = {row.key: row.marker for row in ROWS}
#: A file's name, a caption, and the figure; None where the run has no data for it.
Picture = tuple[str, str, Figure | None]
#: matplotlib's settings.
SETTINGS = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "grid.color": "#e3e7eb",
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of 256 colours: a quarter of the bytes, and it is kept in a repository."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(130)
    canvas.draw()
    picture = PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.quantize(256, dither=PIL.Image.Dither.NONE).save(path, optimize=True)


def duration(value: float, _position: int | None = None) -> str:
    """Seconds on an axis: "20 µs", "5 ms", "1 s"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.999 * scale:
            return f"{value / scale:g} {unit}"
    return f"{value * 1e9:g} ns"


def _ticks(low: float, high: float, steps: Sequence[float]) -> list[float]:
    """Round values between low and high, the decades' multiples by steps."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]


def log_axis(axis, low: float, high: float, formatter) -> None:
    """Readable ticks on a logarithmic axis, three to eight of them."""
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = _ticks(low, high, steps)
        if len(ticks) <= 8:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(formatter))
    axis.set_minor_formatter(NullFormatter())
