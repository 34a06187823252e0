"""skorch: scikit-learn's interface on a module with a recurrent layer."""

from __future__ import annotations

import contextlib
import pickle

import numpy as np
import pytest
import skorch
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

import fastrnn

ROWS, STEPS, IN = 96, 20, 6


class Classifier(nn.Module):
    """Whether the sequence's numbers drift up, from those of its steps that are there."""

    def __init__(self, library: str = "torch.nn", cell: str = "LSTM", hidden: int = 24, layers: int = 2):
        super().__init__()
        classes = fastrnn if library == "fastrnn" else nn
        self.rnn = getattr(classes, cell)(IN, hidden, layers, batch_first=True, dropout=0.1)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x, lengths=None):
        if lengths is None:
            return self.head(self.rnn(x)[0][:, -1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), True, False)
        state = self.rnn(packed)[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


def _data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    y = random.integers(0, 2, ROWS)
    drift = (2 * y - 1)[:, None, None] * np.linspace(0, 0.7, STEPS)[None, :, None]
    x = (random.standard_normal((ROWS, STEPS, IN)) + drift).astype(np.float32)
    return x, random.integers(5, STEPS + 1, ROWS), y


def _net(library: str, **options) -> skorch.NeuralNetClassifier:
    torch.manual_seed(0)
    options = {"module__cell": "LSTM", "max_epochs": 3, "lr": 0.01, **options}
    return skorch.NeuralNetClassifier(
        Classifier,
        module__library=library,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        callbacks=[("clipping", skorch.callbacks.GradientNormClipping(1.0))],
        batch_size=32,
        verbose=0,
        **options,
    )


def _fitted(library: str, cell: str, packed: bool, epochs: int) -> dict[str, torch.Tensor]:
    x, lengths, y = _data()
    inputs = {"x": x, "lengths": lengths} if packed else x
    net = _net(library, module__cell=cell, max_epochs=epochs).fit(inputs, y)
    losses = torch.tensor(net.history[:, ("train_loss", "valid_loss")])
    return {
        "losses": losses,
        "probabilities": torch.from_numpy(net.predict_proba(inputs)),
        **{name: p.detach() for name, p in net.module_.named_parameters()},
    }


@pytest.mark.parametrize(("cell", "packed"), [("LSTM", True), ("GRU", False)], ids=["packed LSTM", "GRU"])
def test_fit(compare, cell, packed):
    """The same losses by epoch, probabilities and weights, with a validation split, clipping and dropout."""
    compare(
        "skorch",
        f"NeuralNetClassifier.fit, {cell}{', packed' if packed else ''}, H=24, 2 layers",
        "import",
        lambda library, epochs: _fitted(library, cell, packed, epochs),
        short=1,
        full=6,
        limit=1e-3,
    )


def test_grid_search():
    """GridSearchCV, which clones and refits the net, scores every combination as with torch.nn."""
    x, _, y = _data()

    def search(library, block):
        net = make_pipeline(FunctionTransformer(), _net(library, train_split=None, max_epochs=2))
        grid = {
            f"neuralnetclassifier__module__{name}": values
            for name, values in (("cell", ["LSTM", "GRU", "RNN"]), ("hidden", [8, 24]))
        }
        with block:
            torch.manual_seed(1)
            return GridSearchCV(net, grid, cv=2, scoring="neg_log_loss", refit=True).fit(x, y)

    expected = search("torch.nn", contextlib.nullcontext())
    for library, block in (("fastrnn", contextlib.nullcontext()), ("torch.nn", fastrnn.patch())):
        found = search(library, block)
        scores = found.cv_results_["mean_test_score"]
        np.testing.assert_allclose(scores, expected.cv_results_["mean_test_score"], rtol=1e-4)
        assert len(scores) == 6
        assert found.best_params_ == expected.best_params_
        np.testing.assert_allclose(found.predict_proba(x), expected.predict_proba(x), rtol=1e-3, atol=1e-4)


def test_kept(tmp_path):
    """A pickled net, and its weights and optimizer in files, go on as the net itself: also where the weights
    come from a net with torch.nn's layer."""
    x, _, y = _data()
    names = {
        f"f_{part}": str(tmp_path / f"{part}.pt") for part in ("params", "optimizer", "history", "criterion")
    }
    nets = {library: _net(library, train_split=None).fit(x, y) for library in ("torch.nn", "fastrnn")}
    nets["torch.nn"].save_params(**names)
    loaded = _net("fastrnn", train_split=None).initialize()
    loaded.load_params(**names)
    again = pickle.loads(pickle.dumps(nets["fastrnn"]))
    assert type(again.module_.rnn) is fastrnn.LSTM
    found = []
    for net in (nets["torch.nn"], nets["fastrnn"], loaded, again):
        torch.manual_seed(5)
        net.partial_fit(x, y)
        found.append((net.predict_proba(x), net.history[:, "train_loss"]))
    for probabilities, losses in found[1:]:
        np.testing.assert_allclose(probabilities, found[0][0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(losses, found[0][1], rtol=1e-4)
