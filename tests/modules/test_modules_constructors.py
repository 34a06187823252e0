"""Constructors: the same arguments, values, warnings and errors as torch.nn, in the same order."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers import CELLS, LAYERS
from torch import nn

import fastrnn


def _outcome(namespace, name, args, kwargs):
    """What a construction leads to: the module as text and attributes, or the error; and the warnings."""
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            m = getattr(namespace, name)(*args, **kwargs)
        except Exception as error:
            result = (type(error), str(error))
        else:
            public = {
                k: v for k, v in vars(m).items() if not k.startswith("_") and k not in ("save", "backend")
            }
            shapes = [(k, tuple(p.shape), p.dtype, p.device.type) for k, p in m.named_parameters()]
            result = (repr(m), public, shapes)
    return result, [(w.category, str(w.message)) for w in caught]


VALID = [
    ((5, 7), {}),
    ((5, 7, 2), {}),
    ((5, 7), {"num_layers": 3, "bidirectional": True, "dropout": 0.5}),
    ((5, 7), {"bias": False, "batch_first": True}),
    ((5, 7), {"dropout": 0.5}),
    ((5, 7, 2), {"dropout": 1}),
    ((5, 7), {"bidirectional": "yes"}),
    ((5, 7), {"bidirectional": 1}),
    ((5, 7), {"dtype": torch.float64, "device": "cpu"}),
    ((5, 7), {"dtype": torch.bfloat16}),
    ((5, 7), {"dtype": torch.complex64}),
    ((5, 7), {"device": "meta"}),
    ((1, 1), {}),
    ((True, 7), {}),
]
INVALID = [
    ((5, 7), {"dropout": None}),
    ((5, 7), {"dropout": "a"}),
    ((5, 7), {"dropout": "0.5"}),
    ((5, 7), {"dropout": True}),
    ((5, 7), {"dropout": 1.5}),
    ((5, 7), {"dropout": -0.1}),
    ((5, 7), {"dropout": float("nan")}),
    ((5, 7), {"bias": 1}),
    ((5, 7), {"bias": None}),
    ((5, 7), {"batch_first": 0}),
    ((5, 7), {"batch_first": "True"}),
    ((0, 7), {}),
    ((-3, 7), {}),
    ((5.0, 7), {}),
    (("5", 7), {}),
    ((None, 7), {}),
    ((5, 0), {}),
    ((5, -1), {}),
    ((5, 7.0), {}),
    ((np.int64(5), 7), {}),
    ((5, np.int64(7)), {}),
    ((5, 7, 0), {}),
    ((5, 7, -1), {}),
    ((5, 7, None), {}),
    ((5,), {}),
    ((), {}),
    ((5, 7), {"unknown": 1}),
    ((5, 7), {"dtype": torch.int64}),
    # More than one mistake: the first of torch's checks answers.
    ((0, 0, 0), {"dropout": None, "bias": 1}),
    ((0, 0, 0), {"dropout": 2.0, "bias": 1}),
    ((0, 0, 0), {"dropout": 0.5, "bias": 1}),
    ((0, 0, 0), {"batch_first": 1}),
    ((5.0, 0, 0), {}),
    ((5, 7.0, 0), {}),
    ((5, 0, 0), {}),
]


@pytest.mark.parametrize(("args", "kwargs"), VALID + INVALID)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_as_torchs(name, args, kwargs):
    """Attributes, repr, parameters, warnings; or the type and the text of the error."""
    assert _outcome(fastrnn, name, args, kwargs) == _outcome(nn, name, args, kwargs)


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("LSTM", (5, 7), {"proj_size": 3}),
        ("LSTM", (5, 7, 2, False, True, 0.0, True, 3), {}),
        ("LSTM", (5, 7), {"proj_size": 7}),
        ("LSTM", (5, 7), {"proj_size": 8}),
        ("LSTM", (5, 7), {"proj_size": -1}),
        ("LSTM", (5, 7), {"proj_size": None}),
        ("LSTM", (5, 7, 0), {"proj_size": -1}),
        ("GRU", (5, 7), {"proj_size": 0}),
        ("GRU", (5, 7), {"proj_size": 3}),
        ("GRU", (0, 7), {"proj_size": 3}),
        ("RNN", (5, 7), {"proj_size": 0}),
        ("GRU", (5, 7, 2, False, True, 0.0, True), {}),
        ("RNN", (5, 7, 2, "relu", False, True, 0.0, True), {}),
        ("RNN", (5, 7, 2, "tanh"), {}),
        ("RNN", (5, 7), {"nonlinearity": "relu"}),
        ("RNN", (5, 7), {"nonlinearity": "x"}),
        ("RNN", (5, 7, 1, "x"), {}),
        ("RNN", (5, 7, 1, True), {}),
        ("RNN", (5, 7, 1, "tanh"), {"nonlinearity": "tanh"}),
    ],
)
def test_arguments_of_one_layer(name, args, kwargs):
    """proj_size belongs to the LSTM; the RNN's fourth argument is its nonlinearity."""
    assert _outcome(fastrnn, name, args, kwargs) == _outcome(nn, name, args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((5, 7), {}),
        ((5, 7, False), {}),
        ((5, 7), {"bias": 0}),
        ((5, 7), {"bias": "yes"}),
        ((5, 7), {"dtype": torch.float64, "device": "meta"}),
        ((0, 7), {}),
        ((5, 0), {}),
        ((5, -1), {}),
        ((5.0, 7), {}),
        ((5,), {}),
        ((5, 7), {"unknown": 1}),
        ((5, 7), {"nonlinearity": "relu"}),
        ((5, 7, True, "relu"), {}),
        ((5, 7), {"nonlinearity": "x"}),
    ],
)
@pytest.mark.parametrize("name", CELLS)
def test_cells_as_torchs(name, args, kwargs):
    """Cells check nothing of their own at construction, and neither do these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert _outcome(fastrnn, name, args, kwargs) == _outcome(nn, name, args, kwargs)


@pytest.mark.parametrize("name", LAYERS)
def test_fastrnns_own_options(name):
    """save and backend: keyword-only, checked, kept, and shown where they are not the default."""
    cls = getattr(fastrnn, name)
    m = cls(5, 7)
    assert (m.save, m.backend) == ("gates", "auto")
    assert repr(m) == f"{name}(5, 7)"
    m = cls(5, 7, bias=False, save="recompute", backend="fused")
    assert (m.save, m.backend) == ("recompute", "fused")
    assert repr(m) == f"{name}(5, 7, bias=False, save=recompute, backend=fused)"
    with pytest.raises(ValueError, match="save should be 'gates' or 'recompute', got 'all'"):
        cls(5, 7, save="all")
    with pytest.raises(ValueError, match=r"backend should be 'auto', 'fused', .* or 'reference', got 3"):
        cls(5, 7, backend=3)


@pytest.mark.parametrize("name", LAYERS)
def test_classes(name):
    """A subclass of RNNBase, for code that looks for one, with the class's own name; and subclassable."""
    assert issubclass(getattr(fastrnn, name), nn.RNNBase)
    assert not issubclass(getattr(fastrnn, name), getattr(nn, name))

    class Mine(getattr(fastrnn, name)):
        pass

    y, _ = Mine(5, 7)(torch.zeros(2, 3, 5))
    assert y.shape == (2, 3, 7)
    with pytest.raises(ValueError, match=f"^{name}: Expected input"):
        Mine(5, 7)(torch.zeros(5))
