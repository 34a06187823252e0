"""pytorch-forecasting: DeepAR and RecurrentNetwork fits, and its recurrent layers for rows without steps.

Its layers are subclasses of torch.nn's with a forward() of their own around torch's.
"""

from __future__ import annotations

import contextlib
import logging
import warnings

import lightning.pytorch as pl
import pytest
import torch
from helpers import flat, kernels_called, randn
from pytorch_forecasting import DeepAR, RecurrentNetwork, TimeSeriesDataSet
from pytorch_forecasting.data.examples import generate_ar_data
from pytorch_forecasting.models.nn import GRU, LSTM

import fastrnn

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def _data(random_length: bool) -> TimeSeriesDataSet:
    series = generate_ar_data(seasonality=10.0, timesteps=100, n_series=16, seed=1)
    series["series"] = series["series"].astype(str)
    return TimeSeriesDataSet(
        series,
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        max_encoder_length=40,
        min_encoder_length=5 if random_length else 40,
        max_prediction_length=10,
        randomize_length=random_length,
        time_varying_unknown_reals=["value"],
    )


def _fit(model_class, cell: str, library: str, road: str, epochs: int) -> dict[str, torch.Tensor]:
    """Fit from a fixed seed; the weights and a prediction."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.seed_everything(7, verbose=False)
        data = _data(random_length=model_class is DeepAR)
        model = model_class.from_dataset(data, cell_type=cell, hidden_size=64, rnn_layers=2, dropout=0.1)
        if library == "fastrnn" and road == "convert":
            fastrnn.convert(model, own_forward=True)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            gradient_clip_val=0.1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        block = fastrnn.patch() if library == "fastrnn" and road == "patch" else contextlib.nullcontext()
        with block:
            trainer.fit(model, data.to_dataloader(batch_size=64, num_workers=0))
            batch, _ = next(iter(data.to_dataloader(train=False, batch_size=64, num_workers=0)))
            model.eval()
            torch.manual_seed(0)
            with torch.no_grad():
                prediction = model(batch)["prediction"]
    return {"prediction": prediction, **{k: v.detach() for k, v in model.named_parameters()}}


@pytest.mark.parametrize(
    ("model_class", "cell", "road"),
    [(DeepAR, "LSTM", "patch"), (DeepAR, "GRU", "convert"), (RecurrentNetwork, "LSTM", "convert")],
)
def test_fit(compare, model_class, cell, road):
    """The same weights and prediction after a fit with clipping and dropout; encoders of random lengths,
    packed, for DeepAR."""
    options = ", own_forward=True" if road == "convert" else ""
    compare(
        "pytorch-forecasting",
        f"{model_class.__name__} fit, {cell}, H=64, 2 layers",
        f"{road}{options}",
        lambda library, epochs: _fit(model_class, cell, library, road, epochs),
        short=1,
        full=3,
        limit=1e-3,
    )


@pytest.mark.parametrize("road", ["convert", "patch"])
@pytest.mark.parametrize("layer", [LSTM, GRU])
def test_rows_without_steps(layer, road):
    """What its layers add to torch's, zero lengths, with each road: outputs, states and gradients."""
    torch.manual_seed(0)
    module = layer(3, 5, num_layers=2, batch_first=True)
    x = randn(4, 6, 3)
    for lengths in ([6, 0, 2, 1], [0, 0, 0, 0], [3, 1, 2, 3]):
        for hx in (None, module.init_hidden_state(x)):
            call = {"hx": hx, "lengths": torch.tensor(lengths), "enforce_sorted": False}
            module.zero_grad()
            expected = flat(module(x, **call))
            loss = sum(t.square().sum() for t in expected)
            gradients = torch.autograd.grad(loss, list(module.parameters())) if loss.requires_grad else ()
            if road == "convert":
                fastrnn.convert(module, own_forward=True)
            with fastrnn.patch() if road == "patch" else contextlib.nullcontext():
                assert (kernels_called(lambda c=call: module(x, **c)) > 0) == any(lengths)
                got = flat(module(x, **call))
                loss = sum(t.square().sum() for t in got)
                torch.testing.assert_close(got, expected)
                if gradients:
                    found = torch.autograd.grad(loss, list(module.parameters()))
                    torch.testing.assert_close(found, gradients)
            fastrnn.revert(module)
            assert type(module) is layer
