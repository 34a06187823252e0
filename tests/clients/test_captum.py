"""captum: attributions of a classifier with a recurrent layer, by gradients, hooks and perturbations."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
from captum import attr
from helpers import kernels_called
from torch import nn

import fastrnn

WORDS, STEPS, IN, H, CLASSES = 30, 12, 8, 16, 3


class Classifier(nn.Module):
    """Of sequences of words or of numbers, by the last step and the mean."""

    def __init__(self, cell: str):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, IN)
        self.rnn = getattr(nn, cell)(IN, H, 2, batch_first=True, bidirectional=True, dropout=0.3)
        self.between = nn.Tanh()
        self.head = nn.Linear(2 * H, CLASSES)

    def forward(self, x):
        if not x.is_floating_point():
            x = self.embedding(x)
        y = self.between(self.rnn(x)[0])
        return self.head(y[:, -1] + y.mean(1))


def _numbers():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(4, STEPS, IN, generator=generator)


def _words():
    return torch.arange(4 * STEPS).view(4, STEPS) * 7 % WORDS


TARGETS = torch.tensor([0, 1, 2, 1])

#: What is attributed, each by a function of the model. Those that perturb call it many times.
METHODS = {
    "Saliency": lambda m: attr.Saliency(m).attribute(_numbers(), target=TARGETS),
    "InputXGradient": lambda m: attr.InputXGradient(m).attribute(_numbers(), target=TARGETS),
    "IntegratedGradients": lambda m: attr.IntegratedGradients(m).attribute(
        _numbers(), target=TARGETS, n_steps=10, internal_batch_size=8, return_convergence_delta=True
    ),
    "DeepLift": lambda m: attr.DeepLift(m).attribute(
        _numbers(), torch.zeros(4, STEPS, IN), target=TARGETS, return_convergence_delta=True
    ),
    "DeepLiftShap": lambda m: attr.DeepLiftShap(m).attribute(
        _numbers(), _numbers().flip(0)[:2], target=TARGETS
    ),
    "GradientShap": lambda m: attr.GradientShap(m).attribute(
        _numbers(), _numbers().flip(0), target=TARGETS, n_samples=3
    ),
    "SmoothGrad": lambda m: attr.NoiseTunnel(attr.Saliency(m)).attribute(
        _numbers(), target=TARGETS, nt_samples=3
    ),
    "FeatureAblation": lambda m: attr.FeatureAblation(m).attribute(_numbers(), target=TARGETS),
    "Occlusion": lambda m: attr.Occlusion(m).attribute(_numbers(), (3, IN), target=TARGETS),
    "ShapleyValueSampling": lambda m: attr.ShapleyValueSampling(m).attribute(
        _numbers(),
        target=TARGETS,
        feature_mask=torch.arange(STEPS).repeat_interleave(IN).view(1, STEPS, IN),
        n_samples=2,
    ),
    "LayerIntegratedGradients": lambda m: attr.LayerIntegratedGradients(m, m.embedding).attribute(
        _words(), _words() * 0, target=TARGETS, n_steps=10
    ),
    "LayerConductance": lambda m: attr.LayerConductance(m, m.between).attribute(
        _numbers(), target=TARGETS, n_steps=10
    ),
    "LayerConductance of the layer's input": lambda m: attr.LayerConductance(m, m.rnn).attribute(
        _numbers(), target=TARGETS, n_steps=10, attribute_to_layer_input=True
    ),
    "LayerGradientXActivation": lambda m: attr.LayerGradientXActivation(m, m.between).attribute(
        _numbers(), target=TARGETS
    ),
    "LayerDeepLift": lambda m: attr.LayerDeepLift(m, m.between).attribute(
        _numbers(), torch.zeros(4, STEPS, IN), target=TARGETS
    ),
    "InternalInfluence": lambda m: attr.InternalInfluence(m, m.between).attribute(
        _numbers(), target=TARGETS, n_steps=10
    ),
    "NeuronConductance": lambda m: attr.NeuronConductance(m, m.between).attribute(
        _numbers(), (STEPS - 1, 5), target=TARGETS, n_steps=10
    ),
    "NeuronGradient": lambda m: attr.NeuronGradient(m, m.between).attribute(_numbers(), (STEPS - 1, 5)),
}


@pytest.mark.parametrize("road", ["convert", "patch"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:Input Tensor")
def test_attributions(cell, road):
    """Every method attributes what it attributes with torch.nn's layer, convergence deltas included."""
    torch.manual_seed(0)
    theirs = Classifier(cell).eval()
    ours = copy.deepcopy(theirs)
    if road == "convert":
        fastrnn.convert(ours)

    def run(model, method):
        torch.manual_seed(3)  # noise and samples
        np.random.seed(3)  # noqa: NPY002 (GradientShap draws from it)
        found = METHODS[method](model)
        return [t.detach().double() for t in (found if isinstance(found, tuple) else (found,))]

    for method in METHODS:
        expected = run(theirs, method)
        with fastrnn.patch() if road == "patch" else contextlib.nullcontext():
            found = []
            assert kernels_called(lambda m=method, f=found: f.extend(run(ours, m))) > 0, method
        scale = expected[0].abs().max().item()
        assert scale > 0, method
        # Of two results the second is how far the attributions' sum is from the outputs' difference.
        limits = [1e-4 * scale, 1e-5]
        for got, wanted, limit in zip(found, expected, limits[: len(expected)], strict=True):
            torch.testing.assert_close(
                got, wanted, rtol=0, atol=limit, msg=lambda text, m=method: f"{m}: {text}"
            )


def test_layer_that_returns_two_tensors():
    """captum's hooks ask for the gradients by both results of a GRU, the layer's own: as with torch.nn's.
    (Of an LSTM, whose states are a tuple in the tuple, captum takes neither library's.)"""
    torch.manual_seed(0)
    layer = nn.GRU(IN, H, batch_first=True)

    class FromBoth(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = layer

        def forward(self, x):
            y, h = self.rnn(x)
            return y.mean(1) + h[0].square()

    def run():
        return attr.LayerGradientXActivation(FromBoth(), layer).attribute(_numbers(), target=2)

    def run_activation():
        return attr.LayerActivation(FromBoth(), layer).attribute(_numbers())

    expected, activation = run(), run_activation()
    assert all(t.abs().max() > 0 for t in expected)
    fastrnn.convert(layer)
    assert kernels_called(run) > 0
    torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run_activation(), activation, rtol=1e-4, atol=1e-5)
