"""Copy: a sequence of random bit vectors is shown, and after an end mark it is to be repeated from memory.

The task of section 4.1 of the paper: trained on sequences of up to ten vectors, a neural Turing machine has
learned something like a loop, and copies longer ones too; an LSTM with as many parameters has not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import LSTM
from ..models import NeuralTuringMachine
from . import demo

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

    def __init__(self, hidden: int = 118) -> None:
        super().__init__()
        self.layer, self.output = LSTM(BITS + 1, hidden), nn.Linear(hidden, BITS)

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        y, state = self.layer(x)
        return self.output(y), state


def machine() -> NeuralTuringMachine:
    return NeuralTuringMachine(BITS + 1, BITS, 100, memory_slots=64, memory_width=20)


class Demo(demo.Demo):
    title = "Neural Turing machine: copying sequences of bits"
    steps, quick_steps = 3000, 60
    targets: ClassVar = {"wrong_bits_at_10": ("<=", 1.0)}
    quick_targets: ClassVar = {"wrong_bits_at_10": ("<=", 1.0)}
    learning_rate = 3e-3
    clip = 10.0
    rows = 16

    def __init__(self, seed: int = 0, model: Callable[[], nn.Module] = machine) -> None:
        super().__init__(seed)
        self.seed, self.trained = seed, 0
        self.model = model()

    def batch(self) -> tuple[Tensor, ...]:
        length = int(torch.randint(1, LONGEST + 1, (), generator=self.generator))
        return sequences(length, self.rows, self.generator)

    def loss(self, x: Tensor, bits: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.model(x)[0][-len(bits) :], bits)

    @torch.no_grad()
    def wrong(self, length: int) -> float:
        """Wrong bits a sequence of that length."""
        x, bits = sequences(length, 100, torch.Generator().manual_seed(12345))
        copied = self.model(x)[0][-length:] > 0
        return (copied != bits.bool()).sum().item() / 100
    def score(self): return {}
    def sample(self): return ''
    def picture(self, path): pass
