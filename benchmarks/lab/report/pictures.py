"""A run's pictures as files."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from . import maps, plots
from .against_cudnn import on_gpu
from .document import Image
from .style import SETTINGS, save


def draw(run: dict, folder: Path) -> list[Image]:
    """Draw every picture that the run has data for into folder; of a GPU's run, its maps alone."""
    images = []
    with matplotlib.rc_context(SETTINGS):
        for name, caption, figure in (maps if on_gpu(run) else plots).figures(run):
            if figure is not None:
                save(figure, folder / name)
                images.append(Image(folder / name, caption))
    return images
