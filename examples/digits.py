"""Strips of digits of unequal length, read without being told where each digit is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import ClassVar

import _demo
import torch
from _run import main
from torch import Tensor

from fastrnn.models.cnn_bilstm import CNNBiLSTM, best_path

#: Fewest and most digits of a strip, its height, and the standard deviation of its noise.
FEWEST, MOST, HEIGHT, NOISE = 3, 9, 10, 0.2

#: The ten digits on five columns and seven lines.
GLYPHS = """
.###. ..#.. .###. .###. ...#. ##### .###. ##### .###. .###.
#...# .##.. #...# #...# ..##. #.... #.... ....# #...# #...#
#..## ..#.. ....# ....# .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ..##. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# ..#.. #...# ....#
.###. .###. ##### .###. ...#. .###. .###. ..#.. .###. .###.
"""


@functools.cache
def glyphs() -> Tensor:
    """Every digit upright and slanted both ways, (3, 10, 7, 7), ones and zeros."""
    lines = [line.split() for line in GLYPHS.split("\n") if line]
    # A slant moves the three lines above the middle by a column, and the three below the other way.
    shifts = [[1 + slant * ((y < 3) - (y > 3)) for y in range(7)] for slant in (-1, 0, 1)]
    return torch.tensor(
        [
            [
                [
                    [c == "#" for c in f"{line[n]:>{5 + left}}".ljust(7)]
                    for line, left in zip(lines, row, strict=True)
                ]
                for n in range(10)
            ]
            for row in shifts
        ]
    ).float()


def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (B, 1, HEIGHT, W), their widths (B,), labels (B, MOST), a digit plus one, and how many (B,).

    Each digit has a place, a slant, a strength and a distance from the one before of its own; all is noisy.
    """

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    images = torch.zeros(rows, 1, HEIGHT, MOST * 10 + 4)
    widths, counts = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    labels = torch.randint(1, 11, (rows, MOST), generator=generator)
    for b in range(rows):
        counts[b] = integer(FEWEST, MOST)
        x = integer(0, 3)
        for label in labels[b, : counts[b]].tolist():
            top, strength = integer(0, HEIGHT - 7), 0.6 + 0.1 * integer(0, 4)
            images[b, 0, top : top + 7, x : x + 7] += strength * glyphs()[integer(0, 2), label - 1]
            x += 6 + integer(0, 3)
        widths[b] = x + 1
    images = images[..., : int(widths.max())]
    images += NOISE * torch.randn(images.shape, generator=generator)
    return images, widths, labels, counts


def distance(a: list[int], b: list[int]) -> int:
    """The fewest insertions, deletions and replacements that make b of a."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


class Demo(_demo.Demo):
    """``error`` is the edit distance of what is read to what is written, a digit; ``exact`` the share of
    strips without any."""

    title = "CNNBiLSTM: strips of three to nine noisy digits, read with CTC"
    steps = 2000
    quick_steps = 240
    learning_rate = 1e-2
    targets: ClassVar = {"error": ("<=", 0.05)}
    quick_targets: ClassVar = {"error": ("<=", 0.7)}

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.model = CNNBiLSTM(
            1,
            11,
            height=HEIGHT,
            channels=(16, 32),
            strides=((2, 1), (2, 2)),
            kernel_size=5,
            hidden_size=48,
        )
        self.held_out = draw(300, torch.Generator().manual_seed(10_000))

    def batch(self) -> tuple[Tensor, ...]:
        return draw(24, self.generator)

    def loss(self, images: Tensor, widths: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        return self.model.loss(*self.model(images, widths), labels, counts)

    @torch.no_grad()
    def read(self, rows: int) -> tuple[list[list[int]], list[list[int]], Tensor, Tensor]:
        """What is written on held-out strips and what is read, and the log probabilities with lengths."""
        images, widths, labels, counts = (t[:rows] for t in self.held_out)
        log_probs, lengths = self.model(images[..., : int(widths.max())], widths)
        written = [row[:n] for row, n in zip(labels.tolist(), counts.tolist(), strict=True)]
        return written, best_path(log_probs, lengths), log_probs, lengths

    def score(self) -> dict[str, float]:
        written, read, _, _ = self.read(300)
        errors = [distance(a, b) for a, b in zip(read, written, strict=True)]
        return {"error": sum(errors) / sum(map(len, written)), "exact": errors.count(0) / len(errors)}

    def sample(self) -> str:
        written, read, _, _ = self.read(8)
        lines = [f"{'written':{MOST}}  read"]
        for a, b in zip(written, read, strict=True):
            lines.append(f"{text(a):{MOST}}  {text(b)}" + ("" if a == b else "   wrong"))
        return "\n".join(lines)

    def picture(self, path: Path) -> None:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        written, read, log_probs, lengths = self.read(3)
        figure = Figure(figsize=(11, 8), layout="constrained")
        axes = figure.subplots(6, 1, height_ratios=(1, 1.7) * 3)
        for b in range(3):
            strip, steps = axes[2 * b : 2 * b + 2]
            width, n = int(self.held_out[1][b]), int(lengths[b])
            pixels = self.held_out[0][b, 0, :, :width].tolist()
            # The same scale from left to right as the steps below, each of two columns.
            strip.imshow(pixels, cmap="gray_r", aspect="auto", extent=(0, width / 2, HEIGHT, 0))
            strip.set_title(f"written {text(written[b])}, read {text(read[b])}", loc="left")
            strip.set_xticks([])
            strip.set_yticks([])
            chances = log_probs[:n, b].exp().t().tolist()
            image = steps.imshow(chances, cmap="Greens", vmin=0, vmax=1, aspect="auto", extent=(0, n, 11, 0))
            steps.xaxis.set_major_locator(MaxNLocator(integer=True))
            steps.set_yticks([c + 0.5 for c in range(11)], ["blank", *map(str, range(10))], fontsize=7)
            for ax in (strip, steps):
                ax.set_xlim(0, int(lengths.max()))
        axes[-1].set_xlabel("step of the recurrent layer")
        figure.colorbar(image, ax=list(axes), label="probability", shrink=0.5, pad=0.01)
        figure.savefig(path, dpi=100)


def text(labels: list[int]) -> str:
    return "".join(str(label - 1) for label in labels)


if __name__ == "__main__":
    main(Demo)
