"""Ten numbers in ascending order, as pointers to them. PointerNetwork."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import _demo
import torch
from _run import main
from torch import Tensor

from fastrnn.models import PointerNetwork

#: Numbers to sort, uniform between 0 and 1.
COUNT = 10


class Demo(_demo.Demo):
    title = "PointerNetwork: ten numbers, sorted"
    steps, quick_steps = 1200, 150
    targets: ClassVar = {"exact": (">=", 0.95), "beam_exact": (">=", 0.95)}
    quick_targets: ClassVar = {"in_place": (">=", 0.5)}
    learning_rate = 5e-3
    rows = 128

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.model = PointerNetwork(1, 64)

    @staticmethod
    def _draw(generator: torch.Generator, rows: int) -> Tensor:
        """Numbers (COUNT, B)."""
        return torch.rand(COUNT, rows, generator=generator)

    @staticmethod
    def _features(numbers: Tensor) -> Tensor:
        return (numbers * 2 - 1).unsqueeze(2)

    def batch(self) -> tuple[Tensor, Tensor]:
        numbers = self._draw(self.generator, self.rows)
        target = torch.nn.functional.pad(numbers.argsort(0) + 1, (0, 0, 0, 1))
        return self._features(numbers), target

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        return -self.model.log_prob(x, target).mean() / len(target)

    def score(self) -> dict[str, float]:
        """On 1000 new rows: how many are sorted to the last number, by greedy search and by beam search with
        4 beams, and the part of the numbers in their places."""
        numbers = self._draw(torch.Generator().manual_seed(1), 1000)
        ranks = torch.nn.functional.pad(numbers.argsort(0) + 1, (0, 0, 0, 1))
        figures = {}
        for name, beam_size in (("exact", 1), ("beam_exact", 4)):
            tokens = self.model.generate(self._features(numbers), beam_size=beam_size).tokens[:, :, 0]
            tokens = torch.nn.functional.pad(tokens, (0, 0, 0, COUNT + 1 - len(tokens)))
            figures[name] = (tokens == ranks).all(0).float().mean().item()
            if beam_size == 1:
                figures["in_place"] = (tokens == ranks)[:COUNT].float().mean().item()
        return figures

    def _sorted(self, numbers: Tensor) -> list[list[float]]:
        """The numbers (COUNT, B) as the model sorts them, by row."""
        found = self.model.generate(self._features(numbers))
        rows = zip(found.tokens[:, :, 0].t(), found.lengths[:, 0].tolist(), numbers.t(), strict=True)
        return [row[tokens[:n] - 1].tolist() for tokens, n, row in rows]

    def sample(self) -> str:
        numbers = self._draw(torch.Generator().manual_seed(2), 6)
        lines = []
        for given, answer in zip(numbers.t().tolist(), self._sorted(numbers), strict=True):
            verdict = "" if answer == sorted(given) else "  wrong"
            lines.append(
                " ".join(f"{n:.3f}"[1:] for n in given)
                + " -> "
                + " ".join(f"{n:.3f}"[1:] for n in answer)
                + verdict
            )
        return "\n".join(lines)

    @torch.no_grad()
    def picture(self, path: Path) -> None:
        """Where the pointer is at every step."""
        from matplotlib.figure import Figure

        numbers = self._draw(torch.Generator().manual_seed(3), 1)
        x = self._features(numbers)
        tokens = self.model.generate(x).tokens[:, :, 0]
        weights = self.model(x, tokens).softmax(2)[:, 0]
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(weights.tolist(), cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks(range(COUNT + 1), ["end", *(f"{n:.2f}" for n in numbers[:, 0].tolist())])
        written = ["end" if i == 0 else f"{numbers[i - 1, 0]:.2f}" for i in tokens[:, 0].tolist()]
        axes.set_yticks(range(len(tokens)), written)
        axes.set(title="Pointing at the next number", xlabel="given", ylabel="pointed to, step by step")
        figure.colorbar(image, ax=axes, label="probability")
        figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(Demo)
