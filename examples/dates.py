"""Dates as people write them, into ISO 8601: "3 May 1987" to "1987-05-03". Seq2Seq."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import _demo
import torch
from _run import main
from torch import Tensor

from fastrnn.models import Seq2Seq

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _ordinal(day: int) -> str:
    suffix = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


#: Ways to write a date, no two dates alike: years have four digits, and slashes are American.
FORMATS: tuple[Callable[[datetime.date], str], ...] = (
    lambda d: f"{d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}",
    lambda d: f"{d.day:02} {MONTHS[d.month - 1][:3].upper()} {d.year}",
    lambda d: f"{MONTHS[d.month - 1][:3]} {_ordinal(d.day)}, {d.year}",
    lambda d: f"the {_ordinal(d.day)} of {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{DAYS[d.weekday()]}, {d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{DAYS[d.weekday()][:3]} {MONTHS[d.month - 1][:3]} {d.day} {d.year}",
    lambda d: f"{d.month}/{d.day}/{d.year}",
    lambda d: f"{d.day}.{d.month}.{d.year}",
    lambda d: f"{d.year}, {MONTHS[d.month - 1]} {d.day}",
)

#: Every character that they use; the target's are followed by its begin and its end.
_WORDS = "".join((*MONTHS, *DAYS, "of", "st", "nd", "rd", "th"))
SOURCE = " ,./0123456789" + "".join(sorted({*_WORDS, *_WORDS.upper()}))
TARGET = "-0123456789"
BOS, EOS = len(TARGET), len(TARGET) + 1

FIRST, LAST = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
#: Every tenth day is held out: no training example has it, in any format.
HELD_OUT = 10


def _source(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Sources as (S, B) tokens, padded with token 0, and their lengths (B,)."""
    lengths = torch.tensor([len(text) for text in texts])
    longest = int(lengths.max())
    return torch.tensor([[SOURCE.index(c) for c in text.ljust(longest)] for text in texts]).t(), lengths


def _target(dates: list[str]) -> Tensor:
    """Targets as (T, B) tokens."""
    return torch.tensor([[*map(TARGET.index, date), EOS] for date in dates]).t()


def _text(tokens: Tensor) -> list[str]:
    """Targets from tokens (T, B), each up to its end."""
    symbols = [*TARGET, "?", ""]
    return ["".join(symbols[i] for i in row).rstrip() for row in tokens.t().tolist()]


class Demo(_demo.Demo):
    title = "Seq2Seq: dates as people write them, into ISO 8601"
    steps, quick_steps = 600, 150
    #: Rounding may set the same answer of the two searches 1e-7 apart.
    targets: ClassVar = {"exact": (">=", 0.99), "beam_exact": (">=", 0.99), "beam_gain": (">=", -1e-6)}
    quick_targets: ClassVar = {"exact": (">=", 0.2)}
    learning_rate = 4e-3
    rows = 64

    def __init__(self, seed: int = 0, attention: str | None = "additive") -> None:
        super().__init__(seed)
        self.model = Seq2Seq(
            len(SOURCE),
            len(TARGET) + 2,
            64,
            bos=BOS,
            eos=EOS,
            embedding_size=32,
            cell="gru",
            attention=attention,
        )

    @staticmethod
    def _draw(generator: torch.Generator, rows: int, held_out: bool) -> tuple[list[str], list[str]]:
        """Dates of the one kind or the other, as people write them and in ISO 8601."""
        days = torch.randint((LAST - FIRST) // HELD_OUT, (rows,), generator=generator) * HELD_OUT
        if not held_out:
            days += torch.randint(1, HELD_OUT, (rows,), generator=generator)
        formats = torch.randint(len(FORMATS), (rows,), generator=generator)
        dates = [datetime.date.fromordinal(FIRST + day) for day in days.tolist()]
        texts = [FORMATS[i](date) for i, date in zip(formats.tolist(), dates, strict=True)]
        return texts, [date.isoformat() for date in dates]

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        texts, dates = self._draw(self.generator, self.rows, False)
        source, lengths = _source(texts)
        return source, _target(dates), lengths

    def loss(self, source: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        return -self.model.log_prob(source, target, lengths).mean() / len(target)

    def score(self) -> dict[str, float]:
        """On 500 dates that were held out: how many are right to the last digit, by greedy and by beam search
        with 4 beams; how much more probable the beam's answers are, and how improbable the right ones, in
        nats a date."""
        texts, dates = self._draw(torch.Generator().manual_seed(1), 500, True)
        source, lengths = _source(texts)
        greedy = self.model.generate(source, lengths, max_length=12)
        beam = self.model.generate(source, lengths, beam_size=4, max_length=12)

        def exact(found) -> float:
            pairs = zip(_text(found.tokens[:, :, 0]), dates, strict=True)
            return sum(text == date for text, date in pairs) / len(dates)

        gain = (beam.log_probs[:, 0] - greedy.log_probs[:, 0]).mean().item()
        with torch.no_grad():
            nats = -self.model.log_prob(source, _target(dates), lengths).mean().item()
        return {"exact": exact(greedy), "beam_exact": exact(beam), "beam_gain": gain, "nats": nats}

    def sample(self) -> str:
        texts, dates = self._draw(torch.Generator().manual_seed(2), 8, True)
        found = _text(self.model.generate(*_source(texts), beam_size=4, max_length=12).tokens[:, :, 0])
        lines = []
        for text, date, answer in zip(texts, dates, found, strict=True):
            lines.append(f"{text:>28} -> {answer}" + ("" if answer == date else f"  wrong: {date}"))
        return "\n".join(lines)

    @torch.no_grad()
    def picture(self, path: Path) -> None:
        """What the decoder looks at while it writes each character of a date."""
        from matplotlib.figure import Figure

        texts = [FORMATS[4](datetime.date(1987, 5, 3)), FORMATS[6](datetime.date(2031, 12, 24))]
        figure = Figure(figsize=(11, 5.2), layout="constrained")
        for axes, text in zip(figure.subplots(1, 2), texts, strict=True):
            source, lengths = _source([text])
            tokens = self.model.generate(source, lengths, max_length=12).tokens[:, :, 0]
            _, weights = self.model(source, tokens, lengths, return_attention=True)
            image = axes.imshow(weights[:, 0].tolist(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(len(text)), ["␣" if c == " " else c for c in text])
            symbols = [*TARGET, "bos", "end"]
            axes.set_yticks(range(len(tokens)), [symbols[i] for i in tokens[:, 0].tolist()])
            axes.set(title=f"{text}  →  {_text(tokens)[0]}", xlabel="read", ylabel="written")
        figure.colorbar(image, ax=figure.axes, label="attention")
        figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(Demo)
