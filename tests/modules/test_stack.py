"""fastrnn.stack: layers of different sizes as one module."""

from __future__ import annotations

import pickle

import pytest
import torch
from helpers import randn
from tolerances import assert_close
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"norm": "layer"}),
        (fastrnn.GRU, {"bidirectional": True}),
        ("LSTM", {"proj_size": 2, "batch_first": True}),
        ("MinGRU", {}),
        ("SLSTM", {"num_heads": 2}),
    ],
)
def test_layers_on_each_other(kind, options):
    """The numbers are those of its layers one after the other; the state is a tuple of theirs."""
    model = fastrnn.stack(kind, 3, [6, 4], **options)
    x = randn(5, 2, 3)
    y, states = model(x)
    first, one = model.layers[0](x)
    want, two = model.layers[1](first)
    assert torch.equal(y, want)
    assert len(states) == 2
    for a, b in zip(states, (one, two), strict=True):
        a, b = ((s,) if isinstance(s, torch.Tensor) else s for s in (a, b))
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))
    assert [layer.hidden_size for layer in model.layers] == [6, 4]
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x, states)[0], model(x, states)[0])
    assert not torch.equal(again(x, states)[0], y)


def test_rows_and_dropout():
    """Packed rows, lengths for every layer, dropout between the layers alone."""
    model = fastrnn.stack("LSTM", 3, [6, 4], dropout=1.0)
    x, lengths = randn(5, 2, 3), torch.tensor([5, 2])
    packed, _ = model.eval()(pack_padded_sequence(x, lengths))
    y, _ = model(x, lengths=lengths)
    assert_close(packed.data, torch.cat([y[:2].flatten(0, 1), y[2:, 0]]), torch.float32)
    y, _ = model.train()(x)
    assert torch.equal(y, model.layers[1](torch.zeros(5, 2, 6))[0])


class Model(nn.Module):
    def __init__(self, layers: fastrnn.LayerStack) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x, hx=None):
        return self.layers(x, hx)


@pytest.mark.parametrize("kind", ["LSTM", "MinGRU"])
def test_symbolically_traced(kind):
    """torch.fx writes the layers into its graph, or with a state the stack as a whole."""
    model, x = Model(fastrnn.stack(kind, 3, [6, 4])), randn(5, 2, 3)
    y, states = model(x)
    traced = torch.fx.symbolic_trace(model, concrete_args={"hx": None})
    assert torch.equal(traced(x)[0], y)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x, states)[0], model(x, states)[0])


def test_wrong_arguments():
    """One error that says what is wrong."""
    with pytest.raises(ValueError, match=r"kind should be a class or one of LSTM.*got int"):
        fastrnn.stack(5, 3, [4])
    with pytest.raises(ValueError, match="a state for each of 2 layers, got int"):
        fastrnn.stack("GRU", 3, [4, 4])(torch.zeros(2, 2, 3), 5)
    with pytest.raises(TypeError, match="lengths, reset and done, got 'return_all_states'"):
        fastrnn.stack("GRU", 3, [4, 4])(torch.zeros(2, 2, 3), return_all_states=True)
    with pytest.raises(RuntimeError, match="LayerStack has no form in TorchScript"):
        torch.jit.script(fastrnn.stack("GRU", 3, [4, 4]))
    with pytest.raises(ValueError, match="kind should be a class or one of LSTM"):
        fastrnn.stack("Linear", 3, [4])
    with pytest.raises(TypeError, match="hidden_size should be a list of sizes, got int"):
        fastrnn.stack("LSTM", 3, 4)
    with pytest.raises(ValueError, match="one layer for each hidden size"):
        fastrnn.stack("LSTM", 3, [])
    with pytest.raises(ValueError, match="a state for each of 2 layers"):
        fastrnn.stack("GRU", 3, [4, 4])(torch.zeros(2, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="heads should divide"):
        fastrnn.stack("LSTM", 3, [4, 5], heads=2)
