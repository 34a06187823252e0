"""darts: an RNNModel for each cell, fitted, and forecasting with the state carried from step to step."""

from __future__ import annotations

import contextlib
import logging
import warnings

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.models import RNNModel

import fastrnn

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def _fit(cell: str, library: str, epochs: int) -> dict[str, torch.Tensor]:
    t = np.arange(400)
    values = np.sin(t / 7) + 0.3 * np.sin(t / 3) + 0.05 * np.random.default_rng(0).standard_normal(len(t))
    series = TimeSeries.from_values(values.astype(np.float32))
    with warnings.catch_warnings(), fastrnn.patch() if library == "fastrnn" else contextlib.nullcontext():
        warnings.simplefilter("ignore")
        model = RNNModel(
            input_chunk_length=40,
            training_length=60,
            model=cell,
            hidden_dim=64,
            n_rnn_layers=2,
            dropout=0.1,
            n_epochs=epochs,
            random_state=1,
            pl_trainer_kwargs={
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "logger": False,
            },
        )
        model.fit(series)
        forecast = torch.from_numpy(model.predict(30).values())
    return {"forecast": forecast, **{k: v.detach().cpu() for k, v in model.model.named_parameters()}}


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_rnn_model(compare, cell):
    """The same weights after a fit and the same forecast of 30 steps."""
    compare(
        "darts",
        f"RNNModel fit and forecast, {cell}, H=64, 2 layers",
        "patch",
        lambda library, epochs: _fit(cell, library, epochs),
        short=1,
        full=4,
        limit=1e-3,
    )
