"""Forecasts of several steps with quantiles, from the last step of a series or from every step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .. import _checks, modules
from . import _inputs

_CELLS = ("LSTM", "GRU", "RNN", "SRU")


class Forecaster(nn.Module):
    r"""A multi-horizon quantile forecaster, a recurrent encoder with a global and a local head.

    After R. Wen, K. Torkkola, B. Narayanaswamy and D. Madeka, "A Multi-Horizon Quantile Recurrent
    Forecaster", NIPS Time Series Workshop, 2017 (arXiv:1711.11053). With the series x and covariates z that
    are known ahead (calendar, prices), for k = 1 ... K and quantiles :math:`\tau_1 < ... < \tau_Q`:

    .. math::
        h_t &= \mathrm{RNN}(h_{t-1}, [x_t; z_t]) \\
        [c_{t,1}; ...; c_{t,K}; c_{t,a}] &= \mathrm{relu}(W [h_t; z_{t+1}; ...; z_{t+K}] + b) \\
        o_{t,k} &= V [c_{t,k}; c_{t,a}; z_{t+k}] + v \\
        q_{t,k,1} &= o_{t,k,1}, \qquad q_{t,k,j} = q_{t,k,j-1} + \mathrm{softplus}(o_{t,k,j})

    The last line is ours: quantiles cannot cross. The heads are linear maps where the paper allows for deeper
    ones. Forecasts from every step of a series (many-to-many, the paper's "forking sequences") cost one pass
    of the encoder, and training on all of them is what makes it learn fast.

    Args:
        input_size: F, values a step of the series.
        horizon: K, steps to forecast.
        covariates: C, values a step known ahead; 0 for none.
        hidden_size, num_layers, dropout: of the encoder.
        cell: "LSTM", "GRU", "RNN" or "SRU", the encoder's layer.
        context_size: D, features of each c.
        quantiles: ascending, between 0 and 1; None for a plain forecast, trained by squared error.

    Raises:
        ValueError: a size below 1, an unknown cell, quantiles out of order.
    """

    def __init__(
        self,
        input_size: int,
        horizon: int,
        *,
        covariates: int = 0,
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
        cell: str = "LSTM",
        context_size: int = 16,
        quantiles: Sequence[float] | None = (0.1, 0.5, 0.9),
    ) -> None:
        super().__init__()
        name = "Forecaster"
        self.input_size = _inputs.size(name, "input_size", input_size)
        self.horizon = _inputs.size(name, "horizon", horizon)
        self.covariates = _inputs.size(name, "covariates", covariates, least=0)
        self.context_size = _inputs.size(name, "context_size", context_size)
        _inputs.size(name, "hidden_size", hidden_size)
        _inputs.size(name, "num_layers", num_layers)
        _inputs.number(name, "dropout", dropout, 0, 1)
        _checks.one_of(name, "cell", cell, _CELLS)
        if quantiles is not None and not _ascending(quantiles):
            raise ValueError(
                f"{name}: quantiles should ascend between 0 and 1, or be None, got {quantiles!r}"
            )
        self.quantiles = None if quantiles is None else tuple(quantiles)
        self.cell = cell
        self.encoder = getattr(modules, cell)(
            input_size + covariates, hidden_size, num_layers, dropout=dropout
        )
        self.contexts = nn.Linear(hidden_size + horizon * covariates, (horizon + 1) * context_size)
        self.head = nn.Linear(2 * context_size + covariates, input_size * len(self.quantiles or (0.5,)))

    def forward(
        self,
        series: Tensor,
        covariates: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        every_step: bool = False,
    ) -> Tensor:
        """Forecast the K steps after a series.

        Args:
            series: (T, B, F).
            covariates: (T + K, B, C), of the series' steps and the K after them; None where C is 0.
            lengths: (B,), 1 to T, how many steps of each row there are; its K steps follow the last of them,
                in the covariates too.
            every_step: forecast from every step of the series, not the last alone. What a row says beyond its
                length is then to be ignored.

        Returns:
            (K, B, F, Q), or (T, K, B, F, Q) from every step; without Q where ``quantiles`` is None.

        Raises:
            ValueError: sizes or lengths that do not fit, an empty batch. TypeError: lengths of another type.
        """
        name, K = "Forecaster", self.horizon
        _inputs.shaped(name, "series", series, "T", "B", self.input_size)
        T, B, _ = series.shape
        if self.covariates:
            _inputs.shaped(name, "covariates", covariates, T + K, B, self.covariates)
        if lengths is not None:
            lengths = _inputs.row_lengths(name, lengths, B, T)
            # Whatever the padding is, a gradient of zero times it is zero.
            series = series.where(_inputs.steps_within(lengths, T, series.device)[..., None], 0)
            if self.covariates:
                known = _inputs.steps_within(lengths + K, T + K, series.device)
                covariates = covariates.where(known[..., None], 0)
        if self.covariates:
            x = torch.cat((series, covariates[:T]), dim=-1)
        elif covariates is not None:
            raise ValueError(f"{name}: covariates should be None, the model was made without, got some")
        else:
            x = series
        if lengths is None:
            h = self.encoder(x)[0]
        else:
            # Nothing runs backward in time, so an SRU's rows need no masks; the others save the work.
            h = self.encoder(x)[0] if self.cell == "SRU" else self.encoder(x, lengths=lengths)[0]
        if every_step:
            ahead = windows(covariates, K) if self.covariates else None
        elif lengths is None:
            h, ahead = h[-1:], covariates[None, T:] if self.covariates else None
        else:
            lengths, rows = lengths.to(x.device), torch.arange(B, device=x.device)
            h = h[lengths - 1, rows][None]
            ahead = None
            if self.covariates:
                ahead = covariates[lengths + torch.arange(K, device=x.device)[:, None], rows][None]
        forecast = self._heads(h, ahead)
        return forecast if every_step else forecast[0]

    def _heads(self, h: Tensor, ahead: Tensor | None) -> Tensor:
        """Forecasts (S, K, B, F[, Q]) from states (S, B, H) and covariates (S, K, B, C)."""
        K, D = self.horizon, self.context_size
        z = [] if ahead is None else [ahead.movedim(1, 2)]
        contexts = torch.relu(self.contexts(torch.cat((h, *(t.flatten(2) for t in z)), dim=-1)))
        contexts = contexts.unflatten(-1, (K + 1, D))
        local, everywhere = contexts[..., :K, :], contexts[..., K:, :].expand(-1, -1, K, -1)
        o = self.head(torch.cat((local, everywhere, *z), dim=-1)).movedim(2, 1)
        if self.quantiles is None:
            return o
        o = o.unflatten(-1, (self.input_size, len(self.quantiles)))
        steps = torch.cat((o[..., :1], nn.functional.softplus(o[..., 1:])), dim=-1)
        return steps.cumsum(-1)

    def loss(self, forecast: Tensor, target: Tensor) -> Tensor:
        r"""The mean pinball loss :math:`\max(\tau (y - q), (\tau - 1) (y - q))`, or the mean squared error
        where ``quantiles`` is None. NaN in the target marks what is not known and does not count.

        Args:
            forecast: as ``forward`` returns it. target: the same without Q; see :func:`windows`.
        """
        expected = forecast.shape if self.quantiles is None else forecast.shape[:-1]
        if _checks.tensor("Forecaster", "target", target).shape != expected:
            raise ValueError(
                f"Forecaster: target should be of size {list(expected)}, got {list(target.shape)}"
            )
        known = ~target.isnan()
        y = target.nan_to_num()
        if self.quantiles is None:
            errors = (y - forecast).square()
        else:
            tau = torch.tensor(self.quantiles, dtype=forecast.dtype, device=forecast.device)
            error = y.unsqueeze(-1) - forecast
            errors = torch.maximum(tau * error, (tau - 1) * error).mean(-1)
        return (errors * known).sum() / known.sum().clamp(min=1)


def _ascending(quantiles: object) -> bool:
    """Whether these are numbers that ascend between 0 and 1, at least one."""
    if not isinstance(quantiles, (tuple, list)) or not all(isinstance(q, (int, float)) for q in quantiles):
        return False
    return bool(quantiles) and all(a < b for a, b in pairwise((0, *quantiles, 1)))


def windows(values: Tensor, horizon: int) -> Tensor:
    """The ``horizon`` steps after each step: (T + K, B, F) to (T, K, B, F), a view."""
    return values[1:].unfold(0, horizon, 1).movedim(-1, 1)
