"""A character model of the English of Python's own manual, trained by truncated backpropagation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import _demo
import torch
from _run import main
from torch import Tensor, nn

from fastrnn import modules
from fastrnn.models.language_model import LanguageModel, chunks

#: Sequences side by side, steps between two updates, characters at the end that nobody trains on.
ROWS, STEPS, HELD_OUT = 32, 64, 20_000


def manual() -> str:
    """The topics of Python's manual as one ASCII text of about 440,000 characters, without its tables."""
    from pydoc_data.topics import topics

    lines = "\n\n".join(topics[name] for name in sorted(topics)).splitlines()
    text = "\n".join(line for line in lines if not line.startswith(("|", "+")))
    return "".join(c for c in text if c.isascii())


@functools.cache
def corpus() -> tuple[str, Tensor, Tensor]:
    """The characters, and the text as their numbers: to train on, and held out."""
    text = manual()
    characters = "".join(sorted(set(text)))
    index = {c: n for n, c in enumerate(characters)}
    numbers = torch.tensor([index[c] for c in text])
    return characters, numbers[:-HELD_OUT], numbers[-HELD_OUT:]


class Demo(_demo.Demo):
    """``bits`` is the cross-entropy a character of held-out text, ``bits_pairs`` that of a table of pairs of
    characters counted in the same training text."""

    title = "LanguageModel: characters of Python's manual with a tied LSTM"
    steps = 1500
    quick_steps = 100
    learning_rate = 8e-3
    targets: ClassVar = {"bits": ("<=", 1.9)}
    quick_targets: ClassVar = {"bits": ("<=", 3.1)}

    def __init__(self, seed: int = 0, layer: Callable[[], nn.Module] = lambda: modules.LSTM(64, 160)) -> None:
        super().__init__(seed)
        self.characters, self.training, self.held_out = corpus()
        self.model = LanguageModel(layer(), len(self.characters))
        self.stream: Iterator[Tensor] = iter(())
        self.state = None

    def batch(self) -> tuple[Tensor, ...]:
        """The next chunk (STEPS + 1, ROWS) of rows that run side by side through the whole text."""
        chunk = next(self.stream, None)
        if chunk is None:  # another round, from another place
            start = int(torch.randint(len(self.training), (1,), generator=self.generator))
            rows = self.training.roll(start)[: len(self.training) // ROWS * ROWS].view(ROWS, -1).t()
            self.stream, self.state = chunks(rows, STEPS), None
            chunk = next(self.stream)
        return (chunk,)

    def loss(self, chunk: Tensor) -> Tensor:
        loss, self.state = self.model.loss(chunk, self.state)
        return loss

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        # Twenty rows side by side; the first characters of each have little before them, as in any text.
        rows = self.held_out[: len(self.held_out) // 20 * 20].view(20, -1).t()
        loss, _ = self.model.loss(rows)
        pairs = torch.ones(len(self.characters), len(self.characters))
        text = self.training
        pairs.index_put_((text[:-1], text[1:]), torch.ones(len(text) - 1), accumulate=True)
        table = (pairs / pairs.sum(1, keepdim=True)).log2()
        return {
            "bits": float(loss) / math.log(2),
            "bits_pairs": -float(table[rows[:-1], rows[1:]].mean()),
        }

    def write(self, prompt: str, count: int, **options) -> str:
        """The prompt and what the model goes on with."""
        index = [[self.characters.index(c)] for c in prompt]
        written = self.model.generate(torch.tensor(index), count, **options)[:, 0]
        return prompt + "".join(self.characters[n] for n in written)

    def sample(self) -> str:
        generator = torch.Generator().manual_seed(0)
        return self.write("The ", 400, temperature=0.7, generator=generator)

    @torch.no_grad()
    def picture(self, path: Path) -> None:
        from matplotlib.figure import Figure

        shown, best = 56, 5
        text = self.held_out[1000 : 1200 + shown]
        scores = self.model(text[:-1, None])[0][-shown:, 0].softmax(-1)
        actual = text[-shown:]
        bits = -scores[torch.arange(shown), actual].log2()
        chances, guesses = scores.topk(best)

        def name(n: int) -> str:
            return {" ": "␣", "\n": "↵"}.get(self.characters[n], self.characters[n])

        figure = Figure(figsize=(13, 4.2), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        top.bar(range(shown), bits.tolist(), color="#0a7d5a", width=0.8)
        top.set_ylabel("surprise, bits")
        top.set_title("Held-out text, and what the model expected before each character", loc="left")
        top.spines[["top", "right"]].set_visible(False)
        image = bottom.imshow(chances.t().tolist(), aspect="auto", cmap="Blues", vmin=0, vmax=1)
        for x in range(shown):
            for rank in range(best):
                hit = guesses[x, rank] == actual[x]
                bottom.text(
                    x,
                    rank,
                    name(int(guesses[x, rank])),
                    ha="center",
                    va="center",
                    fontsize=9,
                    fontweight="bold" if hit else "normal",
                    color="#e4761b" if hit else "white" if chances[x, rank] > 0.5 else "#333333",
                )
        bottom.set_xticks(range(shown), [name(int(n)) for n in actual], fontsize=9)
        bottom.set_yticks(range(best), [f"guess {n + 1}" for n in range(best)])
        bottom.set_xlabel("the text; orange where a guess is right")
        figure.colorbar(image, ax=bottom, label="probability", pad=0.01)
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Demo)
