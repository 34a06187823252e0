"""Moving blobs: ten frames of a film are shown, the next five are to be predicted.

Two blobs of light move with constant velocities and bounce off the edges. The same network is made of a
ConvLSTM and, for comparison, of a fully connected LSTM with as many parameters. Its state after a frame
gives the next frame; beyond those that are shown it goes on from its own predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import _demo
import torch
from _run import main
from torch import Tensor, nn
from torch.nn import functional as F

from fastrnn import LSTM
from fastrnn.models import ConvLSTM

SIZE, SHOWN, AHEAD = 16, 10, 5
#: Standard deviation of a blob in pixels.
RADIUS = 1.5


def films(rows: int, generator: torch.Generator, blobs: int = 2) -> Tensor:
    """(SHOWN + AHEAD, rows, 1, SIZE, SIZE), brightness from 0 to 1; speeds of half to one and a half pixels a
    frame in any direction."""
    draw = torch.rand(4, rows, blobs, generator=generator)
    speed, angle = 0.5 + draw[0], 2 * math.pi * draw[1]
    start, velocity = (SIZE - 1) * draw[2:], torch.stack([speed * angle.cos(), speed * angle.sin()])
    time = torch.arange(SHOWN + AHEAD).view(-1, 1, 1, 1)
    # Bouncing is moving on in a mirrored copy of the square: a zigzag of the free path.
    path = (start + time * velocity) % (2 * (SIZE - 1))
    place = (SIZE - 1) - (path - (SIZE - 1)).abs()  # (T, 2, B, blobs)
    away = torch.arange(SIZE).view(-1, 1, 1, 1, 1) - place
    y, x = torch.exp(-0.5 * (away / RADIUS) ** 2).unbind(2)  # each (SIZE, T, B, blobs)
    return torch.einsum("ytbn,xtbn->tbyx", y, x).clamp(max=1).unsqueeze(2)


class Forecaster(nn.Module):
    """Frames (T, B, 1, SIZE, SIZE) to logits of the frame after each of them, and of further ones."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.layer = ConvLSTM(1, channels, 5)
        self.output = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor, ahead: int = AHEAD) -> Tensor:
        """(T + ahead - 1, B, 1, SIZE, SIZE)."""
        predicted, state = self.advance(x, None)
        frames = [predicted]
        for _ in range(ahead - 1):
            predicted, state = self.advance(predicted[-1:], state)
            frames.append(predicted)
        return torch.cat(frames)

    def advance(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Some frames more."""
        y, state = self.layer(x, state)
        return self.output(y.flatten(0, 1)).unflatten(0, y.shape[:2]), state


class FullyConnected(Forecaster):
    """The same with a fastrnn.LSTM over the pixels."""

    def __init__(self, hidden: int = 21) -> None:
        nn.Module.__init__(self)
        self.layer = LSTM(SIZE**2, hidden)
        self.output = nn.Linear(hidden, SIZE**2)

    def advance(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.layer(x.flatten(2), state)
        return self.output(y).view_as(x), state


class Demo(_demo.Demo):
    """Errors are mean squares over the five frames and all pixels.

    Figures: the error over that of copying the last frame shown, and over that of a fully connected LSTM with
    as many parameters, trained for as many steps on the same films.
    """

    title = "ConvLSTM: the next five frames of moving blobs"
    steps, quick_steps = 400, 20
    targets: ClassVar = {"times_copying": ("<=", 0.5), "times_fully_connected": ("<=", 1.0)}
    quick_targets: ClassVar = {"times_copying": ("<=", 0.8)}
    learning_rate = 5e-3
    rows = 16

    def __init__(self, seed: int = 0, model: Callable[[], nn.Module] = Forecaster) -> None:
        super().__init__(seed)
        self.model = model()

    def batch(self) -> tuple[Tensor, ...]:
        return films(self.rows, self.generator).split([SHOWN, AHEAD])

    def loss(self, shown: Tensor, ahead: Tensor) -> Tensor:
        return F.mse_loss(self.model(shown), torch.cat([shown[1:], ahead]))

    def score(self) -> dict[str, float]:
        shown, ahead = _unseen(128)
        copying = F.mse_loss(shown[-1:].expand_as(ahead), ahead)
        return {"times_copying": (F.mse_loss(self.predict(shown), ahead) / copying).item()}

    def compare(self) -> dict[str, float]:
        rival = Demo(self.seed, FullyConnected)
        rival.train(self.trained)
        shown, ahead = _unseen(128)
        error, rivals = (F.mse_loss(demo.predict(shown), ahead) for demo in (self, rival))
        return {"times_fully_connected": (error / rivals).item()}

    @torch.no_grad()
    def predict(self, shown: Tensor) -> Tensor:
        """The next frames, (AHEAD, B, 1, SIZE, SIZE)."""
        return self.model(shown)[-AHEAD:]

    def sample(self) -> str:
        shown, ahead = _unseen(1)
        predicted = self.predict(shown)
        lines = [f"the last frame of a film, {AHEAD} frames ahead: predicted, and as it was"]
        for row, true in zip(predicted[-1, 0, 0, ::2], ahead[-1, 0, 0, ::2], strict=True):
            lines.append("   ".join(_shades(r) for r in (row, true)))
        return "\n".join(lines)

    def picture(self, path: Path) -> None:
        from matplotlib.figure import Figure

        shown, ahead = _unseen(1)
        predicted, last = self.predict(shown), 3
        nothing = torch.full_like(shown[-last:], torch.nan)
        strips = {
            "as it was": torch.cat([shown[-last:], ahead]),
            "ConvLSTM": torch.cat([shown[-last:], predicted]),
            "difference": torch.cat([nothing, predicted - ahead]),
        }
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        for axis, (name, film) in zip(figure.subplots(len(strips), sharex=True), strips.items(), strict=True):
            # One image of all frames, with a column between them: eight axes a line would take seconds.
            strip = F.pad(film[:, 0, 0], (0, 1), value=torch.nan).transpose(0, 1).flatten(1)[:, :-1]
            limits = {"cmap": "RdBu", "vmin": -1} if name == "difference" else {"cmap": "gray", "vmin": 0}
            image = axis.imshow(strip.numpy(), vmax=1, **limits)
            figure.colorbar(image, ax=axis, label="brightness", fraction=0.02)
            axis.set(ylabel=name, yticks=[])
        axis.set_xticks(
            [(SIZE + 1) * k + (SIZE - 1) / 2 for k in range(last + AHEAD)],
            [f"shown {k}" for k in range(SHOWN - last + 1, SHOWN + 1)]
            + [f"ahead {k + 1}" for k in range(AHEAD)],
        )
        figure.suptitle(f"Moving blobs: {SHOWN} frames are shown, the next {AHEAD} predicted")
        figure.savefig(path)


def _unseen(rows: int) -> tuple[Tensor, Tensor]:
    """Films that no training draws: shown frames and those ahead."""
    return films(rows, torch.Generator().manual_seed(12345)).split([SHOWN, AHEAD])


def _shades(pixels: Tensor) -> str:
    """A line of pixels in characters."""
    return "".join(" .:-=+*#%@"[int(9 * p.clamp(0, 1))] for p in pixels)


if __name__ == "__main__":
    main(Demo)
