"""done and return_all_states of MinGRU, MinLSTM, IndRNN and SLSTM."""

from __future__ import annotations

import pytest
import torch
from helpers import randn
from tolerances import assert_close

import fastrnn

IN, H = 3, 6
KINDS = [
    (fastrnn.MinGRU, {}),
    (fastrnn.MinLSTM, {"log_space": True}),
    (fastrnn.IndRNN, {"nonlinearity": "tanh"}),
    (fastrnn.SLSTM, {"num_heads": 2}),
]


def build(cls, options, **more):
    torch.manual_seed(0)
    return cls(IN, H, **{"dtype": torch.float64, **more}, **options)


def states(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_every_step(cls, options, batch_first):
    """The states after each step, of each layer, are those that a call up to there ends with; beyond a row's
    length there are none, and the rest of the results is unchanged."""
    layer = build(cls, options, num_layers=2, batch_first=batch_first)
    x, lengths = randn(5, 3, IN, dtype=torch.float64), torch.tensor([5, 2, 0])

    def call(x, **more):
        found = layer(x.transpose(0, 1) if batch_first else x, **more)
        return found

    y, last, every = call(x, lengths=lengths, return_all_states=True)
    want_y, want_last = call(x, lengths=lengths)
    assert_close(y, want_y, torch.float64)
    for a, b in zip(states(last), states(want_last), strict=True):
        assert_close(a, b, torch.float64)
    assert len(states(every)) == layer._states
    for i, s in enumerate(states(every)):
        s = s.transpose(1, 2) if batch_first else s
        assert s.shape == (2, 5, 3, H)
        for t in range(5):
            _, upto = call(x[: t + 1])
            running = lengths > t
            assert_close(s[:, t, running], states(upto)[i][:, running], torch.float64)
            assert not s[:, t, ~running].any()
    single = layer(x[:, 0], return_all_states=True)[2]
    assert states(single)[-1].shape == (2, 5, H)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_gradients_of_every_step(cls, options):
    """Both directions: the last states are states of a step, and have the same gradients as there."""
    layer = build(cls, options, bidirectional=True)
    x = randn(4, 2, IN, dtype=torch.float64).requires_grad_()
    y, _, every = layer(x, return_all_states=True)
    leaves = [x, *layer.parameters()]
    for whole, end in zip(states(every), states(layer(x)[1]), strict=True):
        loss = (whole[0, -1, :, :H] ** 2).sum() + 2 * (whole[0, 0, :, H:] ** 2).sum()
        want = (end[0] ** 2).sum() + 2 * (end[1] ** 2).sum()
        found = [
            torch.autograd.grad(v, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for v in (loss, want)
        ]
        for a, b in zip(*found, strict=True):
            assert_close(a, b, torch.float64, gradient=True)
    assert_close(states(every)[0][0], y, torch.float64)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_done(cls, options):
    """done[t] is reset[t+1], and at a row's last step a state of zeros, in the forward direction."""
    layer = build(cls, options, num_layers=2, bidirectional=True)
    x = randn(5, 3, IN, dtype=torch.float64)
    lengths = torch.tensor([5, 3, 4])
    done = torch.zeros(5, 3, dtype=torch.bool)
    done[1, 0] = done[4, 0] = done[2, 1] = done[4, 2] = True  # the last of these is padding
    reset = torch.zeros_like(done)
    reset[1:] = done[:-1]
    y, last = layer(x, lengths=lengths, done=done)
    want, ends = layer(x, lengths=lengths, reset=reset)
    assert_close(y, want, torch.float64)
    for a, b in zip(states(last), states(ends), strict=True):
        assert not a[0::2, :2].any()
        assert_close(a[0::2, 2], b[0::2, 2], torch.float64)
        assert_close(a[1::2], b[1::2], torch.float64)
    with pytest.raises(TypeError, match="return_all_states should be of type bool"):
        layer(x, return_all_states=1)
    with pytest.raises(ValueError, match="done should have size"):
        layer(x, done=done[:2])
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0]])
    with pytest.raises(ValueError, match="done and return_all_states belong to padded input"):
        layer(packed, return_all_states=True)
