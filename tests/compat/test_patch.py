"""fastrnn.patch: torch.nn's own modules run fastrnn's kernels inside the block, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from helpers import CELLS, LAYERS, at_once, flat, kernels_called, randn, results
from tolerances import TORCH_SLACK, assert_close
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn

IN, H = 4, 6


def _input(name: str):
    return randn(3, IN) if name in CELLS else randn(5, 3, IN)


def _runs_fastrnn(name: str = "LSTM") -> bool:
    module = getattr(nn, name)(IN, H)
    return kernels_called(lambda: module(_input(name))) > 0


def _untouched() -> bool:
    return not {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"} & vars(torch._VF).keys()


@pytest.fixture(autouse=True)
def _nothing_left():
    """torch is as it was, before and after each test."""
    assert _untouched()
    yield
    assert _untouched()


CASES = [
    *((name, {}) for name in CELLS),
    ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    *((name, {"num_layers": 2, "bidirectional": True, "batch_first": True}) for name in LAYERS),
    ("LSTM", {"proj_size": 3, "bias": False}),
    ("RNN", {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_numbers(name, options):
    """Outputs and every gradient are those of the same module outside the block; packed batches and a given
    state included."""
    module = getattr(nn, name)(IN, H, **options)
    inputs = [_input(name)]
    if name in LAYERS:
        inputs.append(pack_sequence([randn(n, IN) for n in (2, 4, 3)], enforce_sorted=False))
    for x in inputs:
        out = module(x)
        state = out if name in CELLS else out[1]
        state = tuple(t.detach() for t in state) if isinstance(state, tuple) else state.detach()
        for hx in (None, state):
            expected = results(module, x, hx)
            with fastrnn.patch():
                assert kernels_called(lambda x=x, hx=hx: module(x, hx)) > 0
                got = results(module, x, hx)
            assert got.keys() == expected.keys()
            for label, t in got.items():
                assert_close(
                    t,
                    expected[label],
                    torch.float32,
                    gradient=label.startswith("grad"),
                    slack=TORCH_SLACK[torch.float32],
                    what=label,
                )


def test_dropout_is_torchs():
    """The masks between layers are those that torch would have drawn."""
    module, x = nn.GRU(IN, H, 3, dropout=0.5), randn(5, 3, IN)
    torch.manual_seed(3)
    expected = module(x)[0]
    torch.manual_seed(3)
    with fastrnn.patch():
        torch.testing.assert_close(module(x)[0], expected)


def test_what_no_kernel_covers():
    """Complex numbers go to torch, inside the block too."""
    module, x = nn.LSTM(IN, H, dtype=torch.complex64), randn(5, 3, IN, dtype=torch.complex64)
    expected = flat(module(x))
    with fastrnn.patch():
        assert all(torch.equal(a, b) for a, b in zip(flat(module(x)), expected, strict=True))


def test_subclasses_and_encoders():
    """A subclass that calls super().forward(), and a module deep in a model that knows nothing."""

    class Twice(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0] * 2

    model = nn.Sequential(nn.Linear(3, IN), Twice(IN, H))
    x = randn(5, 2, 3)
    expected = model(x)
    with fastrnn.patch():
        assert kernels_called(lambda: model(x)) == 1
        torch.testing.assert_close(model(x), expected)


def test_blocks():
    """Blocks nest, end with exceptions, decorate functions and overlap; start() and stop() are their ends."""
    with fastrnn.patch():
        with pytest.raises(RuntimeError, match=r"input.size"), fastrnn.patch():
            nn.LSTM(IN, H)(randn(2, 2, IN + 1))
        assert all(_runs_fastrnn(name) for name in (*LAYERS, *CELLS))
    assert not any(_runs_fastrnn(name) for name in (*LAYERS, *CELLS))

    @fastrnn.patch()
    def decorated(depth):
        return _runs_fastrnn() and (depth == 0 or decorated(depth - 1))

    assert decorated(2)
    assert not _runs_fastrnn()

    first, second = fastrnn.patch(), fastrnn.patch()
    first.start()
    second.start()
    first.stop()
    assert _runs_fastrnn()
    second.stop()
    assert not _runs_fastrnn()
    with pytest.raises(RuntimeError, match=r"stop\(\) without a start\(\)"):
        second.stop()


def test_other_patches_survive():
    """What somebody else had put in torch's place is there again afterwards, and was called where needed."""
    seen, original = [], torch._VF.lstm

    def theirs(*args):
        seen.append(args[0].dtype)
        return original(*args)

    torch._VF.lstm = theirs
    try:
        with fastrnn.patch():
            assert _runs_fastrnn()
            nn.LSTM(IN, H, dtype=torch.complex64)(randn(5, 3, IN, dtype=torch.complex64))
        assert torch._VF.lstm is theirs
        assert seen == [torch.complex64]
    finally:
        del torch._VF.lstm


def test_threads():
    """Threads that begin and end blocks at any time always find one open inside theirs."""
    modules = [nn.LSTM(IN, H) for _ in range(6)]
    x = randn(5, 3, IN)
    expected = [m(x)[0].detach() for m in modules]

    def work(i):
        with fastrnn.patch():
            assert kernels_called(lambda: modules[i](x)) == 1
        torch.testing.assert_close(modules[i](x)[0], expected[i])

    at_once(6, work, times=20)
