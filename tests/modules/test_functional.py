"""The stateless interface: the modules' numbers from a flat list of weights, or one clear error."""

from __future__ import annotations

import pytest
import torch
from helpers import CELLS, LAYERS, flat, pair, randn
from tolerances import assert_close
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import functional

T, B, IN, H = 5, 3, 4, 6
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "bias": False, "bidirectional": True, "batch_first": True},
]


def _function(name):
    return getattr(functional, name.lower().replace("cell", "_cell"))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, options, backend):
    """Batched, unbatched and packed input give torch's numbers, states given or not."""
    m = getattr(nn, name)(IN, H, dtype=torch.float64, **options)
    states = m.num_layers * (2 if m.bidirectional else 1)
    h = randn(states, B, H, dtype=torch.float64)
    hx = (h, -h) if name == "LSTM" else h
    one = (h[:, 0], -h[:, 0]) if name == "LSTM" else h[:, 0]
    x = randn(B, T, IN, dtype=torch.float64)
    packed = pack_sequence([randn(n, IN, dtype=torch.float64, seed=n) for n in (5, 3, 1)])
    for input, state in ((x if m.batch_first else x.transpose(0, 1), hx), (x[0], one), (packed, hx)):
        data, sizes = (input.data, input.batch_sizes) if input is packed else (input, None)
        for s in (state, None):
            got = _function(name)(
                data, s, list(m.parameters()), batch_sizes=sizes, backend=backend, **options
            )
            for a, e in zip(flat(got), flat(m(input, s)), strict=True):
                assert_close(a, e, torch.float64)


def test_options_with_a_parameter_of_their_own():
    """Projection is told from the number of weights, the nonlinearity by name."""
    m = nn.LSTM(IN, H, 2, proj_size=2, bidirectional=True, dtype=torch.float64)
    x = randn(T, B, IN, dtype=torch.float64)
    got = functional.lstm(x, None, list(m.parameters()), num_layers=2, bidirectional=True)
    for a, e in zip(flat(got), flat(m(x)), strict=True):
        assert_close(a, e, torch.float64)
    m = nn.RNN(IN, H, nonlinearity="relu", dtype=torch.float64)
    got = functional.rnn(x, None, list(m.parameters()), nonlinearity="relu")
    for a, e in zip(flat(got), flat(m(x)), strict=True):
        assert_close(a, e, torch.float64)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, backend):
    """Cells with and without a batch, with both biases, one or none."""
    m = getattr(nn, name)(IN, H, dtype=torch.float64)
    w_ih, w_hh, b_ih, b_hh = m.parameters()
    h = randn(B, H, dtype=torch.float64)
    hx = (h, -h) if name == "LSTMCell" else h
    one = (h[0], -h[0]) if name == "LSTMCell" else h[0]
    x = randn(B, IN, dtype=torch.float64)
    torchs = {"LSTMCell": torch.lstm_cell, "GRUCell": torch.gru_cell, "RNNCell": torch.rnn_tanh_cell}[name]
    for biases in ((b_ih, b_hh), (None, None), (b_ih, None), (None, b_hh)):
        got = _function(name)(x, hx, w_ih, w_hh, *biases, backend=backend)
        for a, e in zip(flat(got), flat(torchs(x, hx, w_ih, w_hh, *biases)), strict=True):
            assert_close(a, e, torch.float64)
    for input, state in ((x[0], one), (x[0], None), (x, None)):
        got = _function(name)(input, state, *m.parameters(), backend=backend)
        for a, e in zip(flat(got), flat(m(input, state)), strict=True):
            assert_close(a, e, torch.float64)


def test_backends():
    """ "fused" never falls back in silence, "reference" never uses a kernel, "auto" finds what there is."""
    weights = list(nn.GRU(IN, H, dtype=torch.complex64).parameters())
    x = randn(T, B, IN, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="no kernel covers"):
        functional.gru(x, None, weights, backend="fused")
    with pytest.raises(RuntimeError, match="no kernel covers"):
        functional.gru_cell(x[0], None, *weights, backend="fused")
    y, _ = functional.gru(x, None, weights, backend="auto")
    assert y.dtype == torch.complex64


PARAMS = list(nn.LSTM(IN, H).parameters())
X = torch.zeros(T, B, IN)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: functional.lstm(X, None, PARAMS[:3]), ValueError, "4 or 5 .* got 3"),
        (lambda: functional.lstm(X, None, PARAMS, bias=False), ValueError, "bias=False, got 4"),
        (lambda: functional.lstm(X, None, PARAMS, num_layers=2), ValueError, "2 layers .* got 4"),
        (lambda: functional.lstm(X, None, PARAMS, num_layers=0), ValueError, "0 layers"),
        (lambda: functional.lstm(X, None, PARAMS, bidirectional=True), ValueError, "2 directions"),
        (lambda: functional.gru(X, None, PARAMS), ValueError, r"params\[1\] of size"),
        (lambda: functional.lstm(X, None, [*PARAMS[:3], None]), TypeError, r"params\[3\] should be a Tensor"),
        (lambda: functional.lstm(X, None, [*PARAMS[:3], PARAMS[3][1:]]), ValueError, r"params\[3\] of size"),
        (lambda: functional.lstm(X, None, [PARAMS[0].T, *PARAMS[1:]]), ValueError, r"params\[[01]\]"),
        (lambda: functional.lstm(X, None, [*PARAMS[:3], PARAMS[3].double()]), RuntimeError, "same dtype"),
        (lambda: functional.lstm(X, None, [*PARAMS[:3], PARAMS[3].to("meta")]), RuntimeError, "same device"),
        (lambda: functional.lstm(X, None, PARAMS, save="all"), ValueError, "save should be 'gates' or"),
        (
            lambda: functional.lstm(X, None, PARAMS, backend="c"),
            ValueError,
            "backend should be 'auto', 'fused'",
        ),
        (lambda: functional.rnn(X, None, PARAMS, nonlinearity="elu"), ValueError, "nonlinearity should be"),
        (lambda: functional.lstm(X[0, 0], None, PARAMS), ValueError, "Expected input to be 2D or 3D"),
        (lambda: functional.lstm(X[:0], None, PARAMS), RuntimeError, "sequence length to be larger than 0"),
        (lambda: functional.lstm(X.double(), None, PARAMS), ValueError, "does not match weight dtype"),
        (lambda: functional.lstm(X.to("meta"), None, PARAMS), RuntimeError, "not at the same device"),
        (lambda: functional.lstm(X, X, PARAMS), RuntimeError, "expects two hidden states"),
        (lambda: functional.lstm(X, (X, None), PARAMS), TypeError, r"hx\[1\] should be a Tensor"),
        (lambda: functional.lstm([1], None, PARAMS), TypeError, "input should be a Tensor"),
        (lambda: functional.lstm_cell(X[0], None, *PARAMS[:3], PARAMS[3][1:]), RuntimeError, "b_hh"),
        (
            lambda: functional.lstm_cell(X[0], None, None, PARAMS[1]),
            TypeError,
            "w_ih should be a Tensor, got",
        ),
        (lambda: functional.lstm_cell(X[0], None, PARAMS[0], PARAMS[2]), RuntimeError, "w_hh should have 2"),
        (
            lambda: functional.lstm_cell(X[0], None, *PARAMS[:3], 1),
            TypeError,
            "b_hh should be a Tensor, got int",
        ),
        (
            lambda: functional.lstm_cell(X[0], None, *PARAMS, backend="c"),
            ValueError,
            "backend should be 'auto'",
        ),
        (
            lambda: functional.lstm(X, None, None),
            TypeError,
            "params should be a list of Tensors, got NoneType",
        ),
        (lambda: functional.lstm(X, None, iter(PARAMS)), TypeError, "params should be a list of Tensors"),
        (lambda: functional.lstm(X, None, PARAMS, num_layers=None), TypeError, "num_layers should be an int"),
        (lambda: functional.lstm(X, None, PARAMS, dropout=2), ValueError, "dropout probability has to be"),
        (lambda: functional.lstm(X, None, PARAMS, dropout=None), TypeError, "dropout should be a number"),
        (
            lambda: functional.sru(X[0, 0, 0], None, X, X, X),
            ValueError,
            r"input should be \(L, B, I\), got 0",
        ),
    ],
)
def test_errors(call, error, match):
    """Each says which argument is wrong, what was expected and what came."""
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    "sizes",
    [
        torch.tensor([2, 3]),
        torch.tensor([3, 0]),
        torch.tensor([3, -1]),
        torch.tensor([3, 1]),
        torch.tensor([3, 3]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([[3, 2]]),
        torch.tensor([3, 2], dtype=torch.int32),
        torch.tensor([3.0, float("nan")]),
        [3, 2],
        torch.tensor([2**62, 2**62]),
    ],
)
def test_bad_batch_sizes(sizes, backend):
    """Packed batches are not always made by pack_padded_sequence: whatever comes is checked."""
    with pytest.raises((RuntimeError, TypeError)):
        functional.lstm(X[:, 0], None, PARAMS, batch_sizes=sizes, backend=backend)


def test_more_than_the_input_takes_part():
    """A tensor the functions were not made for is refused by name, never read as something else."""
    ours, _ = pair("GRU", IN, H)
    with pytest.raises(TypeError, match="GRU: hx should be a Tensor, got a tuple of 2"):
        ours(X, (X, X))
    for wrong in (X.numpy(), "input", None, 3, [X]):
        with pytest.raises(TypeError, match="input should be a Tensor"):
            ours(wrong)


def test_everything_public_is_exported():
    """The names users import."""
    assert set(fastrnn.__all__) >= {*LAYERS, *CELLS, "functional", "reference", "__version__"}
    recurrent = {"lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell", "sru", "sru_scan"}
    recurrent |= {"linear_scan"}
    assert set(functional.__all__) == recurrent
