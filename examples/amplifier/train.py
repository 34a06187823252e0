"""Trains a small model of a guitar amplifier, and writes what stream.cpp plays it with.

    python examples/amplifier/train.py [--out FOLDER] [--quick]

The amplifier is a circuit of this file's own: a high-pass, a gain that sags under a loud signal, an
asymmetrical clipper, a low-pass. The model, an LSTM of 20 units and a Linear, sees samples of a plucked
string going in and what comes out, as a recording of a real one would be. Written to FOLDER:
amplifier.fastrnn, the model; guitar.wav, a signal that it was not trained on; target.wav, what the circuit
makes of that.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import wave
from pathlib import Path

import torch
from torch import Tensor, nn

# After everything that is installed: a clone that is only built has the package beside the examples.
sys.path.append(str(Path(__file__).resolve().parents[2]))

import fastrnn

RATE = 48000
UNITS = 20
#: Steps that a gradient goes back, and rows that are trained at the same time.
CHUNK, ROWS = 512, 32


def guitar(seconds: float, generator: torch.Generator) -> Tensor:
    """Strings that are plucked now and then: a burst of noise goes round a delay that softens it (Karplus and
    Strong, 1983)."""
    samples = int(seconds * RATE)
    signal = torch.zeros(samples)
    at = 0
    while at < samples:
        rest = samples - at
        period = int(RATE / (82 * 2 ** (float(torch.rand((), generator=generator)) * 2.5)))
        loudness = 0.1 + 0.9 * float(torch.rand((), generator=generator))
        turn = (torch.rand(period, generator=generator) * 2 - 1) * loudness
        turns = []
        for _ in range(math.ceil(rest / period)):
            turns.append(turn)
            turn = 0.996 * 0.5 * (turn + turn.roll(1))
        signal[at:] = 0.3 * signal[at:] + torch.cat(turns)[:rest]
        at += int(RATE * (0.1 + 0.5 * float(torch.rand((), generator=generator))))
    return signal / signal.abs().max()


def amplifier(x: Tensor) -> Tensor:
    """The circuit, sample by sample."""
    y, high, last, envelope, low = [], 0.0, 0.0, 0.0, 0.0
    for sample in x.tolist():
        high = 0.99 * (high + sample - last)
        last = sample
        envelope += (abs(high) - envelope) * (0.01 if abs(high) > envelope else 0.0005)
        driven = 8 / (1 + 2 * envelope) * high
        clipped = math.tanh(driven) if driven > 0 else 0.8 * math.tanh(1.25 * driven)
        low += 0.45 * (clipped - low)
        y.append(0.7 * low)
    return torch.tensor(y)


def rows_of(signal: Tensor) -> Tensor:
    """(samples,) as (T, ROWS, 1)."""
    steps = signal.numel() // ROWS
    return signal[: steps * ROWS].view(ROWS, steps).t().unsqueeze(-1).contiguous()


class Amplifier(nn.Module):
    """What is trained: y is the recurrent layer's output, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(1, UNITS)
        self.linear = nn.Linear(UNITS, 1)

    def forward(self, x: Tensor, state=None) -> tuple[Tensor, tuple]:
        y, state = self.lstm(x, state)
        return self.linear(y), state


def error(y: Tensor, target: Tensor) -> float:
    """Energy of the difference over that of the target."""
    return float((y - target).square().sum() / target.square().sum())


def train(model: Amplifier, x: Tensor, target: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    start = time.monotonic()
    for epoch in range(epochs):
        state, total = None, 0.0
        for at in range(0, x.size(0), CHUNK):
            y, state = model(x[at : at + CHUNK], state)
            state = tuple(s.detach() for s in state)
            loss = (y - target[at : at + CHUNK]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * y.size(0)
        schedule.step()
        print(
            f"epoch {epoch + 1:3}: mean square {total / x.size(0):.5f}, {time.monotonic() - start:.0f} s",
            flush=True,
        )


def write_wav(path: Path, signal: Tensor) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((signal.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/amplifier"), help="(default: build/amplifier)"
    )
    parser.add_argument("--quick", action="store_true", help="seconds, for a model that is not worth hearing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    heard, unheard = (
        guitar(3 if options.quick else 20, generator),
        guitar(1 if options.quick else 10, generator),
    )
    model, expected = Amplifier(), amplifier(unheard)
    train(model, rows_of(heard), rows_of(amplifier(heard)), 2 if options.quick else 60)
    with torch.no_grad():
        y = model(unheard.view(-1, 1))[0].flatten()
    print(f"error to signal on what it has not heard: {100 * error(y, expected):.2f} %")
    fastrnn.runtime.save([model.lstm, model.linear], options.out / "amplifier.fastrnn")
    write_wav(options.out / "guitar.wav", unheard)
    write_wav(options.out / "target.wav", expected)
    print(f"wrote amplifier.fastrnn, guitar.wav and target.wav to {options.out}")


if __name__ == "__main__":
    main()
