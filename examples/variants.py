"""Three cells on the character model of ``text`` at equal time: an LSTM, one with layer norm and zoneout, and
an sLSTM. The picture has their curves, the JSON beside it the numbers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import _demo
import text
import torch
from _run import main
from torch import Tensor, nn

from fastrnn import modules

#: Inputs and hidden units of each: the same, whatever the cells then weigh and cost.
SIZES = (64, 160)
#: Short names for figures, names for readers, colours, and the layers.
RACERS: dict[str, tuple[str, str, Callable[[], nn.Module]]] = {
    "lstm": ("LSTM", "#0a7d5a", lambda: modules.LSTM(*SIZES)),
    "norm": (
        "LSTM, layer norm, zoneout (0.05, 0.1)",
        "#e4761b",
        lambda: modules.LSTM(*SIZES, norm="layer", zoneout=(0.05, 0.1)),
    ),
    "slstm": ("sLSTM, 4 heads", "#3b6fb6", lambda: modules.SLSTM(*SIZES, num_heads=4)),
}
#: Losses that a point of a curve is the mean of.
SPAN = 20


class Demo(_demo.Demo):
    """``bits_lstm``, ``bits_norm`` and ``bits_slstm`` are ``text``'s figure of each, after as many seconds of
    training (or as many steps, where it is told those)."""

    title = "Variants: LSTM, layer-norm LSTM with zoneout and sLSTM, characters at equal time"
    steps = 500
    quick_steps = 45
    targets: ClassVar = dict.fromkeys(("bits_lstm", "bits_norm", "bits_slstm"), ("<=", 2.5))
    quick_targets: ClassVar = dict.fromkeys(("bits_lstm", "bits_norm", "bits_slstm"), ("<=", 3.6))

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.racers = {key: text.Demo(seed, layer) for key, (_, _, layer) in RACERS.items()}
        self.model = nn.ModuleDict({key: racer.model for key, racer in self.racers.items()})
        #: Of each: seconds of training until a step's end, and the step's loss.
        self.curves: dict[str, list[tuple[float, float]]] = {key: [] for key in RACERS}

    def batch(self) -> tuple[Tensor, ...]:
        return self.racers["lstm"].batch()

    def loss(self, *batch: Tensor) -> Tensor:
        """The mean of the three."""
        return torch.stack([racer.loss(*batch) for racer in self.racers.values()]).mean()

    def train(
        self,
        steps: int,
        seconds: float = float("inf"),
        report: Callable[[int, float], None] = lambda step, loss: None,
    ) -> list[float]:
        """Each for so many steps, or a third of the time; the mean of their losses, of as many steps as the
        slowest took."""
        losses = []
        if not self.trained:
            self.warm_up()
        for key, racer in self.racers.items():
            begin, curve = time.monotonic(), self.curves[key]
            before = curve[-1][0] if curve else 0.0

            def add(step: int, loss: float, begin=begin, curve=curve, before=before) -> None:
                curve.append((before + time.monotonic() - begin, loss))
                report(step, loss)

            losses.append(racer.train(steps, seconds / len(self.racers), add))
        self.trained += min(map(len, losses))
        return [sum(each) / len(each) for each in zip(*losses, strict=False)]

    def warm_up(self) -> None:
        """What a process's first steps load and allocate is nobody's time."""
        with torch.random.fork_rng():
            for _, _, layer in RACERS.values():
                text.Demo(self.seed, layer).train(2)

    def score(self) -> dict[str, float]:
        found = {key: racer.score() for key, racer in self.racers.items()}
        return {f"bits_{key}": figures["bits"] for key, figures in found.items()} | {
            "bits_pairs": found["lstm"]["bits_pairs"]
        }

    def sample(self) -> str:
        written = []
        for key, racer in self.racers.items():
            generator = torch.Generator().manual_seed(0)
            text_of = racer.write("The ", 120, temperature=0.7, generator=generator)
            written.append(f"{RACERS[key][0]}: {text_of}")
        return "\n".join(written)

    def picture(self, path: Path) -> None:
        """The curves; what they are drawn from goes into a JSON file of the same name."""
        from matplotlib.figure import Figure

        score, figures = self.score(), {}
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.subplots()
        for key, (name, color, _) in RACERS.items():
            curve = self.curves[key]
            points = _smooth([(s, loss / math.log(2)) for s, loss in curve])
            weights = sum(p.numel() for p in self.racers[key].model.parameters())
            bits, total = score[f"bits_{key}"], curve[-1][0] if curve else 0.0
            label = f"{name}: {bits:.2f} bits, {len(curve)} steps"
            axes.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.5)
            figures[name] = {
                "bits": round(bits, 4),
                "weights": weights,
                "steps": len(curve),
                "seconds": round(total, 2),
                "curve": [[round(s, 2), round(b, 4)] for s, b in points[:: max(1, len(points) // 100)]],
            }
        axes.set_xlabel("seconds of training")
        axes.set_ylabel("training loss, bits a character")
        axes.set_title("Characters of Python's manual at equal time; bits of held-out text", loc="left")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, alpha=0.3)
        figure.savefig(path, dpi=110)
        document = {
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "hidden": SIZES[1],
            "bits_pairs": round(score["bits_pairs"], 4),
            "models": figures,
        }
        path.with_suffix(".json").write_text(json.dumps(document) + "\n")


def _smooth(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over SPAN points, at the last of them; the curve itself where it is shorter."""
    span = min(SPAN, max(1, len(curve)))
    return [
        (curve[i][0], sum(value for _, value in curve[i + 1 - span : i + 1]) / span)
        for i in range(span - 1, len(curve))
    ] or [(0.0, math.nan)]


if __name__ == "__main__":
    main(Demo)
