"""Noisy seasonal series with holidays: a forecaster against the seasonal naive forecast."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import _demo
import torch
from _run import main
from torch import Tensor

from fastrnn.models.forecaster import Forecaster, windows

#: Steps of a season, of what is seen and of what is forecast; the rest is the recipe of the series.
PERIOD, HISTORY, HORIZON = 12, 48, 12
HOLIDAY, EFFECT, NOISE, CARRY = 0.1, 1.0, 0.25, 0.5


def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Series and holidays, (T + K, B, 1) each: a level, a trend, two harmonics of any phase, a fixed effect
    of holidays and autocorrelated noise."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, generator=generator)

    steps = HISTORY + HORIZON
    t = torch.arange(steps)[:, None]
    season = sum(
        uniform(low, high) * torch.sin(2 * math.pi * (n * t / PERIOD + uniform(0, 1)))
        for n, low, high in ((1, 0.5, 1.5), (2, 0.0, 0.7))
    )
    holidays = (torch.rand(steps, rows, generator=generator) < HOLIDAY).float()
    shocks = NOISE * math.sqrt(1 - CARRY**2) * torch.randn(steps, rows, generator=generator)
    noise = [shocks[0]]
    for shock in shocks[1:]:
        noise.append(CARRY * noise[-1] + shock)
    y = uniform(-0.5, 0.5) + uniform(-0.01, 0.01) * t + season + EFFECT * holidays + torch.stack(noise)
    return y[..., None], holidays[..., None]


class Demo(_demo.Demo):
    """The seasonal naive forecast says what was a season ago. ``over_naive`` is the median's mean absolute
    error as a part of that forecast's; ``coverage_off`` how far the share of values between the 10% and the
    90% quantile is from 0.8."""

    title = "Forecaster: noisy seasonal series with holidays, quantiles of the next twelve steps"
    steps = 800
    quick_steps = 200
    learning_rate = 1e-2
    targets: ClassVar = {
        "over_naive": ("<=", 0.65),
        "over_naive_every_step": ("<=", 0.65),
        "coverage_off": ("<=", 0.04),
    }
    quick_targets: ClassVar = {"over_naive": ("<=", 0.85), "over_naive_every_step": ("<=", 0.85)}

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.model = Forecaster(1, HORIZON, covariates=1, hidden_size=48)
        self.held_out = draw(512, torch.Generator().manual_seed(10_000))

    def batch(self) -> tuple[Tensor, ...]:
        return draw(32, self.generator)

    def loss(self, series: Tensor, holidays: Tensor) -> Tensor:
        forecast = self.model(series[:HISTORY], holidays, every_step=True)
        return self.model.loss(forecast, windows(series, HORIZON))

    @torch.no_grad()
    def forecast(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Held-out series (T + K, B, 1), holidays, and the forecasts from every step (T, K, B, 1, 3)."""
        series, holidays = (t[:, rows] for t in self.held_out)
        return series, holidays, self.model(series[:HISTORY], holidays, every_step=True)

    def score(self) -> dict[str, float]:
        series, _, forecast = self.forecast()
        truth = windows(series, HORIZON)
        error = (forecast[..., 1] - truth).abs()
        # From the steps that have a whole season behind them.
        naive_error = (windows(series[:-PERIOD], HORIZON) - truth[PERIOD:]).abs()
        inside = (forecast[-1, ..., 0] <= truth[-1]) & (truth[-1] <= forecast[-1, ..., 2])
        return {
            "over_naive": float(error[-1].mean() / naive_error[-1].mean()),
            "over_naive_every_step": float(error[PERIOD:].mean() / naive_error.mean()),
            "mae": float(error[-1].mean()),
            "coverage_off": abs(float(inside.float().mean()) - 0.8),
        }

    def sample(self) -> str:
        series, holidays, forecast = self.forecast(slice(0, 1))
        lines = ["step   truth  median   10% .. 90%       a season before"]
        for k in range(HORIZON):
            low, middle, high = forecast[-1, k, 0, 0].tolist()
            at = HISTORY + k
            lines.append(
                f"{k + 1:4d}  {series[at].item():6.2f}  {middle:6.2f}   {low:5.2f} .. {high:5.2f}   "
                f"{series[at - PERIOD].item():6.2f}" + ("   holiday" if holidays[at].item() else "")
            )
        return "\n".join(lines)

    def picture(self, path: Path) -> None:
        from matplotlib.figure import Figure

        series, holidays, forecast = self.forecast(slice(0, 3))
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        axes = figure.subplots(3, 1, sharex=True)
        steps = range(HISTORY + HORIZON)
        ahead = steps[HISTORY:]
        for row, ax in enumerate(axes):
            low, middle, high = forecast[-1, :, row, 0].t().tolist()
            values = series[:, row, 0].tolist()
            ax.plot(steps, values, color="#444444", linewidth=1.2, label="series")
            ax.fill_between(ahead, low, high, color="#0a7d5a", alpha=0.25, label="10% to 90%")
            ax.plot(ahead, middle, color="#0a7d5a", linewidth=2, label="median forecast")
            ax.plot(
                ahead,
                series[HISTORY - PERIOD : HISTORY, row, 0],
                "--",
                color="#e4761b",
                label="seasonal naive",
            )
            days = [t for t in steps if holidays[t, row, 0]]
            ax.plot(days, [values[t] for t in days], "v", color="#3f74b5", markersize=5, label="holiday")
            ax.axvline(HISTORY - 0.5, color="#9aa5b1", linewidth=1)
            ax.set_ylabel(f"series {row + 1}")
        axes[0].set_title("Forecasts of twelve steps, to the right of the line", loc="left")
        axes[-1].set_xlabel("step")
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Demo)
