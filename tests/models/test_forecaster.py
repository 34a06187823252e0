"""Forecaster: its heads against the equations, many-to-one against many-to-many, lengths, errors, export."""

from __future__ import annotations

import pytest
import torch

from fastrnn.models import Forecaster
from fastrnn.models.forecaster import windows

T, B, F, C, K = 7, 3, 2, 2, 4


def model(**options) -> Forecaster:
    return Forecaster(F, K, **{"covariates": C, "hidden_size": 8, "context_size": 3, **options}).double()


def data(steps: int = T, rows: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(steps, rows, F).double(), torch.randn(steps + K, rows, C).double()


def test_heads_follow_the_equations():
    """Protects the docstring's equations: one row, one step, one horizon at a time, in plain loops."""
    ours, (x, z) = model(), data()
    h = ours.encoder(torch.cat((x, z[:T]), -1))[0]
    got = ours(x, z, every_step=True)
    D, Q = ours.context_size, 3
    for t in (0, T - 1):
        for b in range(B):
            c = torch.relu(ours.contexts(torch.cat((h[t, b], z[t + 1 : t + 1 + K, b].flatten()))))
            for k in range(K):
                local = torch.cat((c[k * D : (k + 1) * D], c[K * D :], z[t + 1 + k, b]))
                o = ours.head(local).view(F, Q)
                q = [o[:, 0]]
                for j in (1, 2):
                    q.append(q[-1] + torch.log1p(o[:, j].exp()))
                torch.testing.assert_close(got[t, k, b], torch.stack(q, -1))


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN", "SRU"])
@pytest.mark.parametrize("covariates", [0, C])
def test_every_step_is_many_to_one_of_every_prefix(cell, covariates):
    """Protects causality: what a step forecasts is what the series up to it forecasts."""
    ours, (x, z) = model(cell=cell, covariates=covariates), data()
    z = z if covariates else None
    every = ours(x, z, every_step=True)
    assert every.shape == (T, K, B, F, 3)
    for t in range(T):
        prefix = None if z is None else z[: t + 1 + K]
        torch.testing.assert_close(every[t], ours(x[: t + 1], prefix))


@pytest.mark.parametrize("cell", ["LSTM", "SRU"])
def test_rows_do_not_depend_on_padding_or_each_other(cell):
    """Protects batch invariance: a padded row forecasts what it does alone, gradients included."""
    ours, (x, z) = model(cell=cell), data()
    lengths = [T, 3, 1]
    x.requires_grad_()
    got = ours(x, z, lengths=lengths)
    got.sum().backward()
    for b, n in enumerate(lengths):
        torch.testing.assert_close(got[:, b], ours(x[:n, b : b + 1], z[: n + K, b : b + 1])[:, 0])
        assert (x.grad[n:, b] == 0).all()
        assert (x.grad[:n, b] != 0).any()


def test_pinball_loss():
    """Protects the loss: by hand; its minimum over constants is the quantile; NaN does not count."""
    ours = Forecaster(1, 1, quantiles=(0.25, 0.75))
    forecast = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    got = ours.loss(forecast, torch.full((1, 1, 1), 3.0))
    assert got.item() == pytest.approx((0.25 * 2 + 0.75 * 1) / 2)
    y = torch.randn(1, 401, 1)
    grid = torch.linspace(-2, 2, 201)
    losses = [ours.loss(torch.full((1, 401, 1, 2), float(q)), y) for q in grid]
    lowest = grid[torch.stack(losses).argmin()]
    assert -0.75 < lowest < 0.75  # the two quantiles' losses together: anywhere between them
    one = Forecaster(1, 1, quantiles=(0.9,))
    losses = torch.stack([one.loss(torch.full((1, 401, 1, 1), float(q)), y) for q in grid])
    assert grid[losses.argmin()] == pytest.approx(float(y.quantile(0.9)), abs=0.05)
    padded = torch.cat((forecast, torch.full_like(forecast, 7.0)), 1).requires_grad_()
    loss = ours.loss(padded, torch.tensor([3.0, torch.nan]).view(1, 2, 1))
    assert loss.item() == pytest.approx(got.item())
    loss.backward()
    assert padded.grad[:, 1].abs().max() == 0


def test_point_forecast():
    """Protects quantiles=None: no dimension for them, squared error."""
    ours, (x, z) = model(quantiles=None), data()
    y = ours(x, z)
    assert y.shape == (K, B, F)
    torch.testing.assert_close(ours.loss(y, y.detach() + 2), torch.tensor(4.0).double())


def test_windows():
    """Protects what the targets of many-to-many training are."""
    x = torch.arange(5.0).view(5, 1, 1)
    assert windows(x, 2)[..., 0, 0].tolist() == [[1, 2], [2, 3], [3, 4]]


def test_state_dict_compile_and_export():
    """Protects saving, torch.compile with changing sizes, and torch.export of the training form."""
    ours, (x, z) = model(), data()
    again = model()
    again.load_state_dict(ours.state_dict())
    expected = ours(x, z, every_step=True)
    torch.testing.assert_close(again(x, z, every_step=True), expected, rtol=0, atol=0)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="eager")
    for steps, rows in ((T, B), (5, 4)):
        x2, z2 = data(steps, rows)
        torch.testing.assert_close(compiled(x2, z2, every_step=True), ours(x2, z2, every_step=True))
        torch.testing.assert_close(compiled(x2, z2), ours(x2, z2))
    program = torch.export.export(ours, (x, z), {"every_step": True})
    torch.testing.assert_close(program.module()(x, z, every_step=True), expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"series": torch.randn(0, B, F)}, ValueError, r"series should be of size \(T, B, 2\)"),
        ({"series": torch.randn(T, 0, F)}, ValueError, "none of them 0"),
        ({"series": torch.randn(T, B, F + 1)}, ValueError, "series"),
        ({"series": None}, TypeError, "series should be a Tensor"),
        ({"covariates": None}, TypeError, "covariates"),
        ({"covariates": torch.randn(T, B, C)}, ValueError, r"covariates should be of size \(11, 3, 2\)"),
        ({"lengths": [T, 0, 1]}, ValueError, "lengths should be from 1 to 7, the steps, got 0"),
        ({"lengths": [T, T + 1, 1]}, ValueError, "got 8"),
        ({"lengths": [T, 1]}, ValueError, r"size \(3,\)"),
        ({"lengths": [1.0, 2.0, 3.0]}, TypeError, "integers"),
    ],
)
def test_wrong_input_is_named(change, error, text):
    """Protects the messages for what does not fit."""
    x, z = data()
    arguments = {"series": x, "covariates": z, **change}
    with pytest.raises(error, match=text):
        model()(**arguments)


def test_wrong_arguments_are_named():
    """Protects the constructor's messages."""
    for options, text in (
        ({"horizon": 0}, "horizon"),
        ({"cell": "CNN"}, "cell"),
        ({"quantiles": (0.5, 0.1)}, "ascend"),
        ({"quantiles": ()}, "ascend"),
        ({"quantiles": (0.5, 1.0)}, "between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=text):
            Forecaster(**{"input_size": 1, "horizon": 2, **options})
    with pytest.raises(ValueError, match="covariates should be None"):
        model(covariates=0)(*data())
    with pytest.raises(ValueError, match="target"):
        model().loss(torch.zeros(K, B, F, 3), torch.zeros(K, B, F, 1))
