"""Keras' layers and their weights as fastrnn's. The numbers are Keras' own, of 3.15 on its torch backend, for
weights and inputs that a formula gives; where keras is installed its layers are compared too."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from tolerances import assert_close

import fastrnn

#: Outputs (2, 3, 2) of layers of 2 units for 3 inputs.
NUMBERS = {
    "LSTM": [
        -0.073229,
        -0.126696,
        -0.232888,
        0.07859,
        -0.077221,
        -0.082424,
        -0.314483,
        0.104152,
        -0.045133,
        -0.025643,
        -0.43305,
        0.087477,
    ],
    "GRU": [
        -0.005256,
        -0.141259,
        -0.153937,
        -0.27111,
        -0.182798,
        -0.342041,
        -0.16197,
        -0.191179,
        -0.207665,
        -0.25024,
        -0.317241,
        -0.366292,
    ],
    "GRU before": [
        0.003126,
        -0.103437,
        -0.20226,
        -0.288942,
        -0.185603,
        -0.239145,
        -0.215257,
        -0.273428,
        -0.232676,
        -0.153599,
        -0.382773,
        -0.363478,
    ],
    "RNN": [
        0.930814,
        0.985229,
        -0.875644,
        -0.750526,
        0.995175,
        0.994374,
        -0.24559,
        -0.333536,
        0.982679,
        0.981677,
        -0.930595,
        -0.598444,
    ],
}
CASES = {
    "LSTM": (fastrnn.LSTM, [(3, 8), (2, 8), (8,)], {}),
    "GRU": (fastrnn.GRU, [(3, 6), (2, 6), (2, 6)], {}),
    "GRU before": (fastrnn.GRU, [(3, 6), (2, 6), (6,)], {"reset_after": False}),
    "RNN": (fastrnn.RNN, [(3, 2), (2, 2), (2,)], {}),
}


def fill(shapes) -> list[np.ndarray]:
    found, start = [], 0
    for shape in shapes:
        count = int(np.prod(shape))
        found.append(np.sin(0.7 * np.arange(start, start + count) + 0.3).reshape(shape).astype("float32"))
        start += count
    return found


X = torch.from_numpy(np.cos(np.arange(18)).reshape(2, 3, 3).astype("float32"))


def layer_like(case: str, **more):
    """What from_keras looks at of a Keras layer."""
    _, shapes, options = CASES[case]
    tanh, sigmoid = types.SimpleNamespace(__name__="tanh"), types.SimpleNamespace(__name__="sigmoid")
    has = {"activation": tanh, "recurrent_activation": sigmoid, "go_backwards": False, "dropout": 0.0}
    has |= {"recurrent_dropout": 0.0, "reset_after": options.get("reset_after", True)}
    return types.SimpleNamespace(**{**has, **more}, get_weights=lambda: fill(shapes))


@pytest.mark.parametrize("case", CASES)
def test_numbers(case):
    """Weights, and layers, give Keras' numbers: both places of GRU's reset gate, both biases."""
    cls, shapes, options = CASES[case]
    want = torch.tensor(NUMBERS[case]).view(2, 3, 2)
    for source in (fill(shapes), tuple(map(torch.from_numpy, fill(shapes))), layer_like(case)):
        layer = cls.from_keras(source)
        assert type(layer) is cls
        assert layer.batch_first
        assert (layer(X)[0] - want).abs().max() < 2e-6
        for option, value in options.items():
            assert getattr(layer, option) == value
    assert cls.from_keras(layer_like(case), dtype=torch.float64, save="recompute").save == "recompute"


@pytest.mark.parametrize("case", CASES)
def test_two_directions(case):
    """Bidirectional: the second half of the arrays is the reverse direction's."""
    cls, shapes, _ = CASES[case]
    both = cls.from_keras([*fill(shapes), *fill(shapes)])
    one = cls.from_keras(fill(shapes))
    size = both.hidden_size
    y = both(X)[0]
    assert_close(y[..., :size], one(X)[0], torch.float32)
    assert_close(y[..., size:], one(X.flip(1))[0].flip(1), torch.float32)
    wrapped = types.SimpleNamespace(
        forward_layer=layer_like(case), backward_layer=layer_like(case, go_backwards=True)
    )
    assert torch.equal(cls.from_keras(wrapped)(X)[0], y)


def test_options():
    """Recurrent dropout comes along; no bias is no bias; of weights alone the options are the caller's."""
    assert fastrnn.LSTM.from_keras(layer_like("LSTM", recurrent_dropout=0.2)).recurrent_dropout == 0.2
    weights = fill(CASES["GRU"][1])[:2]
    assert not fastrnn.GRU.from_keras(weights).bias
    assert not fastrnn.GRU.from_keras(weights, reset_after=False).reset_after
    relu = types.SimpleNamespace(__name__="relu")
    assert fastrnn.RNN.from_keras(layer_like("RNN", activation=relu)).nonlinearity == "relu"


WRONG = [
    (
        "LSTM",
        {"activation": types.SimpleNamespace(__name__="relu")},
        "activation should be 'tanh', got 'relu'",
    ),
    ("GRU", {"recurrent_activation": types.SimpleNamespace(__name__="hard_sigmoid")}, "recurrent_activation"),
    ("LSTM", {"go_backwards": True}, "go_backwards=True has no layer here"),
    ("LSTM", {"dropout": 0.1}, "dropout of a layer's own input"),
]


@pytest.mark.parametrize(("case", "more", "text"), WRONG)
def test_what_there_is_not(case, more, text):
    """What a layer does that there is not here raises, and names it."""
    with pytest.raises(ValueError, match=text):
        CASES[case][0].from_keras(layer_like(case, **more))


def test_wrong_weights():
    """Arrays of other numbers or sizes, and what is neither layer nor list."""
    with pytest.raises(ValueError, match="got 1 arrays"):
        fastrnn.LSTM.from_keras(fill([(3, 8)]))
    with pytest.raises(ValueError, match=r"expected a kernel \(I, 4\*H\)"):
        fastrnn.LSTM.from_keras(fill([(3, 6), (2, 6), (6,)]))
    with pytest.raises(TypeError, match="a Keras layer or a list of its weights, got int"):
        fastrnn.LSTM.from_keras(3)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [("LSTM", {}), ("GRU", {}), ("GRU", {"reset_after": False}), ("SimpleRNN", {"activation": "relu"})],
)
def test_live(name, options, bidirectional):
    """The installed Keras' own layers."""
    keras = pytest.importorskip("keras")
    layer = getattr(keras.layers, name)(4, return_sequences=True, bias_initializer="uniform", **options)
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    want = torch.from_numpy(np.array(keras.ops.convert_to_numpy(layer(X.numpy()))))
    ours = getattr(fastrnn, name.removeprefix("Simple")).from_keras(layer)
    assert_close(ours(X)[0], want, torch.float32, slack=4)
