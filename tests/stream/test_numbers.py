"""The runtime computes what Python computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import randn
from stream.runtime import Model, chain_of, load, steps_of
from torch import nn

import fastrnn

#: Of one register and of several, with and without a rest, on every instruction set.
SIZES = (1, 2, 5, 8, 13, 16, 17, 24, 32, 33, 40, 48, 49, 57, 64, 65, 73, 89, 130)
KINDS = {
    "lstm": (fastrnn.LSTM, {}),
    "gru": (fastrnn.GRU, {}),
    "rnn_tanh": (fastrnn.RNN, {}),
    "rnn_relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
}


@pytest.fixture
def here(isa, monkeypatch):
    """An instruction set, in use by both."""
    monkeypatch.setenv("FASTRNN_CPU_ISA", isa)
    return isa.removesuffix("_bf16")


def wider(layer: nn.Module, factor: float = 2.0) -> nn.Module:
    """Weights of such a size that gates saturate, now and then."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= factor
    return layer


@pytest.mark.parametrize("kind", KINDS)
def test_the_streamers_bits(kind, here, tmp_path):
    """Every layer's outputs are those of streamer().step(), to the last bit, one layer or two."""
    make, options = KINDS[kind]
    for number, (inputs, hidden) in enumerate(itertools.product((1, 19), SIZES)):
        layer = wider(make(inputs, hidden, num_layers=1 + number % 2, bias=number % 3 > 0, **options))
        x = randn(17, inputs, seed=number)
        model = load(layer, tmp_path)
        assert model.isa == here
        expected, got = steps_of(layer, x), model(x)
        assert torch.equal(expected, got), (inputs, hidden, (expected - got).abs().max())


def test_projections_bits(here, tmp_path):
    for hidden, size in ((2, 1), (8, 3), (24, 17), (40, 39), (65, 8), (100, 70)):
        layer = wider(fastrnn.LSTM(5, hidden, num_layers=2, proj_size=size))
        x = randn(20, 5)
        assert torch.equal(steps_of(layer, x), load(layer, tmp_path)(x)), (hidden, size)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_tanh": True}, {"has_skip_term": False}, {"rescale": True, "highway_bias": -1.5}, {"v1": True}],
    ids=str,
)
def test_srus_bits(options, here, tmp_path):
    """SRU.step() has no streamer: it reads its weights where they are."""
    for inputs, hidden in ((1, 1), (5, 5), (16, 33), (33, 16), (70, 70)):
        layer = wider(fastrnn.SRU(inputs, hidden, num_layers=2, **options))
        x = randn(20, inputs)
        assert torch.equal(steps_of(layer, x), load(layer, tmp_path)(x)), (inputs, hidden)


def test_however_the_steps_are_cut(here, tmp_path):
    """A call of 500 steps, calls of one, and of any number between: the same bits, whatever the layer."""
    torch.manual_seed(3)
    layers = [
        wider(nn.LSTM(3, 20)),
        nn.Linear(20, 7),
        nn.Tanh(),
        wider(nn.GRU(7, 9, num_layers=2)),
        fastrnn.SRU(9, 9),
        nn.Linear(9, 2),
    ]
    model, x = load(layers, tmp_path), randn(500, 3)
    whole = model(x)
    for pieces in ([1] * 500, [63, 1, 64, 65, 128, 0, 179], [499, 1]):
        model.reset()
        assert torch.equal(whole, model(x, pieces)), pieces[:3]
    again = model(x)  # without a reset the state goes on
    assert not torch.equal(whole, again)


def test_a_linear_layers_steps_cut(here, tmp_path):
    """Few outputs are summed for several steps together, and a step by itself in the same order: any count of
    outputs, and inputs in one register, in several and in a part of one."""
    for inputs, outputs in itertools.product((1, 7, 8, 9, 16, 20, 33, 70), (1, 2, 3, 4, 5, 17)):
        model, x = load(nn.Linear(inputs, outputs), tmp_path), randn(67, inputs)
        whole = model(x)
        for pieces in ([1] * 67, [2, 3, 4, 5, 7, 8, 9, 13, 16], [64, 3], [1, 66]):
            assert torch.equal(whole, model(x, pieces)), (inputs, outputs, pieces[:3])


def test_against_the_definition(tmp_path):
    """A whole chain of every kind against float64 in plain torch."""
    torch.manual_seed(1)
    for recurrent in (nn.LSTM(4, 30, 2), nn.GRU(4, 30, 2), nn.RNN(4, 30, 2), nn.LSTM(4, 50, proj_size=30)):
        layers = [recurrent, nn.Dropout(0.5), nn.Linear(30, 12), nn.SiLU(), nn.Linear(12, 3, bias=False)]
        x = randn(200, 4)
        wide = nn.Sequential(*layers).double().eval()
        y = wide[0](x.double())[0]
        for layer in wide[1:]:
            y = layer(y)
        got = load(nn.Sequential(*layers).float(), tmp_path)(x)
        torch.testing.assert_close(got, y.detach().float(), atol=2e-6, rtol=2e-5)


ACTIVATIONS = (
    nn.Identity(),
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(0.1),
    nn.Hardtanh(-0.5, 2.25),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.SiLU(),
    nn.ELU(1.3),
    nn.Softsign(),
    nn.Hardsigmoid(),
)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda m: type(m).__name__)
def test_activations(activation, here, tmp_path):
    """As torch's, at tiny, ordinary, huge and infinite values; NaN stays NaN."""
    eye = nn.Linear(1, 1, bias=False)
    nn.init.ones_(eye.weight)
    x = torch.cat(
        [torch.linspace(-12, 12, 1001), torch.tensor([0.0, 1e-30, -1e-7, 1e-4, 90, -90, 1e30, -1e30])]
    )
    x = torch.cat([x, torch.tensor([float("inf"), -float("inf"), float("nan")])]).unsqueeze(1)
    got = load([eye, activation], tmp_path)(x)
    expected = activation(x.double()).float()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=2e-6, equal_nan=True)
    assert torch.isnan(got[-1])


def test_linear_of_every_shape(here, tmp_path):
    """Few outputs and many inputs are other loops than the reverse."""
    for inputs, outputs in itertools.product((1, 4, 15, 16, 40, 129), (1, 2, 3, 4, 5, 16, 37, 70)):
        for steps in (1, 3, 40):
            linear = nn.Linear(inputs, outputs, bias=outputs % 2 > 0)
            x = randn(steps, inputs)
            expected = linear.double()(x.double()).detach().float()
            got = load(linear.float(), tmp_path)(x)
            torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


def test_weights_that_are_rewritten(tmp_path):
    """Heads are blocks among zeros, f = 1 - i is a row of the other sign; what training alone has is gone."""
    x = randn(100, 6)
    for layer in (
        fastrnn.LSTM(6, 24, heads=3, num_layers=2),
        fastrnn.GRU(6, 24, heads=4),
        fastrnn.RNN(6, 12, heads=2),
        fastrnn.LSTM(6, 20, coupled=True),
        fastrnn.LSTM(6, 24, coupled=True, heads=2, proj_size=0),
        fastrnn.LSTM(6, 16, recurrent_dropout=0.5, weight_dropout=0.5, dropout=0.5, num_layers=2),
    ):
        expected = wider(layer).eval()(x)[0].detach()
        torch.testing.assert_close(load(layer, tmp_path)(x), expected, atol=2e-6, rtol=2e-5)


def test_not_a_number_stays_until_a_reset(tmp_path):
    """An input that is none spoils the state, and only until fastrnn_reset."""
    model, x = load([nn.LSTM(2, 9), nn.Linear(9, 1)], tmp_path), randn(30, 2)
    clean = model(x)
    model.reset()
    spoilt = x.clone()
    spoilt[10, 1] = float("nan")
    got = model(spoilt)
    assert torch.equal(got[:10], clean[:10])
    assert torch.isnan(got[10:]).all()
    model.reset()
    assert torch.equal(model(x), clean)


def test_streams_share_nothing(tmp_path):
    """Two streams on one file, a step each in turn."""
    first, x = load(nn.GRU(2, 17), tmp_path), randn(2, 20, 2)
    second = Model(tmp_path / "model.fastrnn")
    alone = [first(x[0]), second(x[1])]
    first.reset()
    second.reset()
    turns = [
        torch.cat(rows)
        for rows in zip(*((first(a[None]), second(b[None])) for a, b in zip(*x, strict=True)), strict=True)
    ]
    assert torch.equal(turns[0], alone[0])
    assert torch.equal(turns[1], alone[1])


def test_a_chain_gives_what_its_layers_give(tmp_path):
    """Linear and activations lie between recurrent layers as in Python."""
    torch.manual_seed(5)
    layers = [
        nn.Linear(2, 8),
        nn.Tanh(),
        fastrnn.LSTM(8, 21),
        nn.LeakyReLU(),
        fastrnn.GRU(21, 6),
        nn.Linear(6, 1),
    ]
    x = randn(150, 2)
    torch.testing.assert_close(
        load(nn.Sequential(*layers), tmp_path)(x), chain_of(layers, x), atol=1e-6, rtol=1e-5
    )
