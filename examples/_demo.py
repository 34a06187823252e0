"""What every example has: data, a training recipe, a score, a sample and a picture.

An example is a program beside this file, with one class ``Demo`` in it. Run by itself it trains for as long
as one likes (_run.py); the tests train it to its targets, and the benchmark takes its batches.
"""

from __future__ import annotations

import abc
import importlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
# After everything that is installed: a clone that is only built has the package beside the examples.
sys.path.append(str(FOLDER.parent))

NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def load(name: str) -> type[Demo]:
    """The class of examples/NAME.py.

    Raises:
        ValueError: where there is none; the message lists those that are there.
    """
    if name not in NAMES:
        raise ValueError(f"example: expected one of {', '.join(NAMES)}, got {name!r}")
    return importlib.import_module(name).Demo


class Demo(abc.ABC):
    """One architecture of ``fastrnn.models`` on a task that shows what it is good for.

    A subclass makes ``self.model`` in its ``__init__`` and trains with Adam; what it draws comes from
    ``self.generator`` alone, so that a seed repeats a run on the same machine.

    Args:
        seed: of the model's initial values and of the training data.

    Attributes:
        title: one line for the list of examples.
        steps: training steps of the full run, whose score ``targets`` judge.
        quick_steps: those of the quick run, a few seconds.
        targets: name of a figure of ``score()`` or ``compare()`` -> (">=" or "<=", bound) after the full run.
        quick_targets: the same of ``score()`` after the quick run.
        seed: as given. trained: steps so far.
    """

    title: str
    steps: int
    quick_steps: int
    targets: ClassVar[dict[str, tuple[str, float]]]
    quick_targets: ClassVar[dict[str, tuple[str, float]]]

    learning_rate = 1e-3
    #: Largest norm of all gradients together, see ``torch.nn.utils.clip_grad_norm_``.
    clip = 1.0

    model: nn.Module

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.seed, self.trained = seed, 0
        self.generator = torch.Generator().manual_seed(seed)

    @abc.abstractmethod
    def batch(self) -> tuple[Tensor, ...]:
        """The next training batch, drawn from ``self.generator``."""

    @abc.abstractmethod
    def loss(self, *batch: Tensor) -> Tensor:
        """What training minimises, a scalar, for one batch."""

    @abc.abstractmethod
    def score(self) -> dict[str, float]:
        """Figures on data that training never saw; the same data in every call."""

    def compare(self) -> dict[str, float]:
        """More figures like those of ``score()``, beside rivals which this trains for as many steps first."""
        return {}

    @abc.abstractmethod
    def sample(self) -> str:
        """A few lines that show what the model has learned."""

    @abc.abstractmethod
    def picture(self, path: Path) -> None:
        """Draw what the model does with an example, with matplotlib, into a file."""

    def train(
        self,
        steps: int,
        seconds: float = float("inf"),
        report: Callable[[int, float], None] = lambda step, loss: None,
    ) -> list[float]:
        """Train for so many steps, or until the time is up; the loss of every step.

        The learning rate falls to zero along a cosine over the steps, or over the seconds where those end
        first. ``report`` is called after every step with its number, from 1, and its loss.
        """
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)
        losses, begin = [], time.monotonic()
        self.model.train()
        for step in range(1, steps + 1):
            done = max((step - 1) / steps, (time.monotonic() - begin) / seconds)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            loss = self.loss(*self.batch())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            optimizer.step()
            losses.append(loss.item())
            report(step, losses[-1])
        self.trained += len(losses)
        self.model.eval()
        return losses


def missed(score: dict[str, float], targets: dict[str, tuple[str, float]]) -> list[str]:
    """A line for each target that the score misses."""
    lines = []
    for name, (relation, bound) in targets.items():
        reached = score[name] >= bound if relation == ">=" else score[name] <= bound
        if not reached:
            lines.append(f"{name}: {score[name]:.4g}, expected {relation} {bound:g}")
    return lines
