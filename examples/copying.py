"""Copy: a sequence of random bit vectors is shown, and after an end mark it is to be repeated from memory.

The task of section 4.1 of the paper: trained on sequences of up to ten vectors, a neural Turing machine has
learned something like a loop, and copies longer ones too; an LSTM with as many parameters has not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import _demo
import torch
from _run import main
from torch import Tensor, nn
from torch.nn import functional as F

from fastrnn import LSTM
from fastrnn.models import NeuralTuringMachine

BITS, LONGEST = 8, 10


def sequences(length: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Input (2*length + 1, rows, BITS + 1), of which the last feature is the end mark, and the bits
    (length, rows, BITS), expected as output of the last `length` steps."""
    bits = torch.randint(2, (length, rows, BITS), generator=generator).float()
    x = bits.new_zeros(2 * length + 1, rows, BITS + 1)
    x[:length, :, :BITS] = bits
    x[length, :, BITS] = 1
    return x, bits


class LongShortTermMemory(nn.Module):
    """The rival: fastrnn.LSTM and a linear layer."""

    def __init__(self, hidden: int = 119) -> None:
        super().__init__()
        self.layer, self.output = LSTM(BITS + 1, hidden), nn.Linear(hidden, BITS)

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        y, state = self.layer(x)
        return self.output(y), state


def machine() -> NeuralTuringMachine:
    """As in the paper, but with 32 slots in place of 128: enough for 20 vectors, and quicker."""
    return NeuralTuringMachine(BITS + 1, BITS, 100, memory_slots=32, memory_width=20)


class Demo(_demo.Demo):
    """Figures: wrong bits a sequence of 10 and of 3 vectors (of 80 and 24 bits, half of which are right by
    chance), the wrong share of bits at 20 vectors, and that of an LSTM with as many parameters, trained
    for as many steps on the same sequences."""

    title = "Neural Turing machine: copying sequences of bits"
    steps, quick_steps = 800, 200
    targets: ClassVar = {
        "wrong_bits_at_10": ("<=", 1.0),
        "wrong_share_at_20": ("<=", 0.05),
        "lstm_wrong_share_at_20": (">=", 0.2),
    }
    quick_targets: ClassVar = {"wrong_bits_at_3": ("<=", 8.0)}
    learning_rate = 6e-3
    clip = 10.0
    rows = 16

    def __init__(self, seed: int = 0, model: Callable[[], nn.Module] = machine) -> None:
        super().__init__(seed)
        self.model = model()

    def batch(self) -> tuple[Tensor, ...]:
        length = int(torch.randint(1, LONGEST + 1, (), generator=self.generator))
        return sequences(length, self.rows, self.generator)

    def loss(self, x: Tensor, bits: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.model(x)[0][-len(bits) :], bits)

    def score(self) -> dict[str, float]:
        return {
            "wrong_bits_at_3": self.wrong(3),
            "wrong_bits_at_10": self.wrong(10),
            "wrong_share_at_20": self.wrong(20) / (20 * BITS),
        }

    def compare(self) -> dict[str, float]:
        rival = Demo(self.seed, LongShortTermMemory)
        rival.train(self.trained)
        return {
            "lstm_wrong_bits_at_10": rival.wrong(10),
            "lstm_wrong_share_at_20": rival.wrong(20) / (20 * BITS),
        }

    @torch.no_grad()
    def wrong(self, length: int) -> float:
        """Wrong bits a sequence of that length."""
        x, bits = sequences(length, 200, torch.Generator().manual_seed(12345))
        copied = self.model(x)[0][-length:] > 0
        return (copied != bits.bool()).sum().item() / bits.size(1)

    @torch.no_grad()
    def sample(self) -> str:
        x, bits = sequences(20, 1, torch.Generator().manual_seed(54321))
        copied = self.model(x)[0][-20:] > 0
        lines = ["a sequence of 20 vectors, a bit a line: shown, and copied (x: wrong)"]
        for shown, got in zip(bits[:, 0].T, copied[:, 0].T, strict=True):
            right = "".join(str(int(b)) for b in shown)
            lines.append(
                right + "   " + "".join(r if int(r) == c else "x" for r, c in zip(right, got, strict=True))
            )
        return "\n".join(lines)

    @torch.no_grad()
    def picture(self, path: Path) -> None:
        from matplotlib.figure import Figure

        length = 20
        x, bits = sequences(length, 1, torch.Generator().manual_seed(54321))
        y, _, weightings = self.model(x, return_weightings=True)
        shown, copied = torch.full((2, len(x), BITS), torch.nan)
        shown[:length], copied[-length:] = bits[:, 0], y[-length:, 0].sigmoid()
        read, write = weightings[:, 0].unbind(1)
        panels = {
            "shown bits": shown,
            "copied bits": copied,
            "write head: slot": write,
            "read head: slot": read,
        }
        figure = Figure(figsize=(8, 9), layout="constrained")
        heights = [panel.size(1) for panel in panels.values()]
        axes = figure.subplots(len(panels), sharex=True, height_ratios=heights)
        for axis, (name, panel) in zip(axes, panels.items(), strict=True):
            image = axis.imshow(
                panel.T.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="none"
            )
            axis.axvline(length, color="tab:red", linewidth=1)
            axis.set_ylabel(name)
        axes[0].set_title(f"{length} vectors are shown, and copied after the end mark (red)")
        axes[-1].set_xlabel("step")
        figure.colorbar(image, ax=axes.tolist(), label="bit, or weight of a slot", shrink=0.5)
        figure.savefig(path)


if __name__ == "__main__":
    main(Demo)
