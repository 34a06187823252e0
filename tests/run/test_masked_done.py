"""done= of the layers: where sequences end, in mid-batch and at the end of a call."""

from __future__ import annotations

import pytest
import torch
from helpers import LAYERS, flat, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, vmap

import fastrnn

IN, H = 3, 4
DOUBLE = torch.float64
T, B = 6, 3
X = randn(T, B, IN, dtype=DOUBLE)
DONE = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0]]).bool()


def _module(name: str, **options):
    torch.manual_seed(0)
    return getattr(fastrnn, name)(IN, H, num_layers=2, dtype=DOUBLE, **options)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_against_reset_and_chunk_by_chunk(data):
    """done is reset one step later: outputs, states of every step and gradients are the same, but for last
    states of zeros where a row's last step is done. So a rollout in two calls gives the outputs of one."""
    module = _module(
        data.draw(st.sampled_from(LAYERS)), backend=data.draw(st.sampled_from(["auto", "reference"]))
    )
    masks = st.lists(st.booleans(), min_size=T * B, max_size=T * B)
    done, reset = (torch.tensor(data.draw(masks)).view(T, B) for _ in range(2))
    lengths = data.draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    later = torch.cat([reset[:1], reset[1:] | done[:-1]])
    x = X.clone().requires_grad_()
    given = flat(module(x[:2])[1])  # a state with a graph
    hx = tuple(given) if len(given) == 2 else given[0]

    y, state, steps = module(x, hx, lengths=lengths, reset=reset, done=done, return_all_states=True)
    expected_y, expected, expected_steps = module(x, hx, lengths=lengths, reset=later, return_all_states=True)
    assert all(
        torch.equal(a, b) for a, b in zip(flat([y, steps]), flat([expected_y, expected_steps]), strict=True)
    )
    last = torch.tensor([T] * B if lengths is None else lengths) - 1
    over = torch.stack([done[t, b] & (t >= 0) for b, t in enumerate(last)])
    expected = [s.masked_fill(over.unsqueeze(1), 0) for s in flat(expected)]
    assert all(torch.equal(a, b) for a, b in zip(flat(state), expected, strict=True))
    leaves = [x, *module.parameters()]
    found = [
        torch.autograd.grad(sum(t.pow(2).sum() for t in out), leaves, retain_graph=True)
        for out in ([y, *flat(state)], [expected_y, *expected])
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)

    if lengths is None:
        cut = data.draw(st.integers(1, T - 1))
        first, carried = module(x[:cut], hx, reset=reset[:cut], done=done[:cut])
        second, _ = module(x[cut:], carried, reset=reset[cut:], done=done[cut:])
        torch.testing.assert_close(torch.cat([first, second]), y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LAYERS)
def test_two_directions(name):
    """Both directions are cut; the reverse one begins with its hx and ends with its state at step 0."""
    module = _module(name, bidirectional=True)
    y, state = module(X, done=DONE)
    reset = torch.cat([torch.zeros_like(DONE[:1]), DONE[:-1]])
    expected_y, expected = module(X, reset=reset)
    assert torch.equal(y, expected_y)
    over = torch.stack([DONE[-1], torch.zeros(B).bool()] * 2).unsqueeze(2)
    for a, b in zip(flat(state), flat(expected), strict=True):
        assert torch.equal(a, b.masked_fill(over, 0))


@pytest.mark.parametrize("name", LAYERS)
def test_layouts(name):
    """batch_first, one sequence, integers, no rows, one compiled graph, exported, per-sample gradients."""
    module = _module(name)
    expected = flat(module(X, done=DONE))
    for got in (
        flat(module(X, done=DONE.int())),
        flat(torch.compile(module, fullgraph=True, backend="eager")(X, done=DONE)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    alone = flat(module(X[:, 0], done=DONE[:, 0]))
    torch.testing.assert_close(alone, [expected[0][:, 0], *(s[:, 0] for s in expected[1:])])
    assert module(X[:, :0], done=DONE[:, :0])[0].shape == (T, 0, H)
    module.batch_first = True
    assert torch.equal(module(X.transpose(0, 1), done=DONE.t())[0].transpose(0, 1), expected[0])
    module.batch_first = False

    program = torch.export.export(module, (X,), {"done": DONE}).module()
    torch.testing.assert_close(flat(program(X, done=DONE)), expected)

    def loss(weights, row, done):
        y, state = functional_call(module, weights, (row,), {"done": done})
        return y.pow(2).sum() + flat(state)[0].pow(2).sum()

    weights = dict(module.named_parameters())
    each = vmap(grad(loss), in_dims=(None, 1, 1))(weights, X, DONE)
    whole = torch.autograd.grad(expected[0].pow(2).sum() + expected[1].pow(2).sum(), weights.values())
    for found, total in zip(each.values(), whole, strict=True):
        torch.testing.assert_close(found.sum(0), total)


@pytest.mark.parametrize(
    ("done", "error", "text"),
    [
        (True, TypeError, "done should be a Tensor, got bool"),
        ([[0] * B] * T, TypeError, "done should be a Tensor, got a list"),
        (DONE.double(), TypeError, "done should be a mask of bool or integers, got torch.float64"),
        (DONE.t(), ValueError, r"done should have size \[6, 3\], got \[3, 6\]"),
        (DONE.to("meta"), RuntimeError, "done should be on the input's device, cpu, and is on meta"),
        (DONE.to_sparse(), RuntimeError, "done should be a dense Tensor"),
    ],
    ids=str,
)
def test_errors(done, error, text):
    """The argument, what was expected and what came; nor does it belong to packed input."""
    with pytest.raises(error, match=text):
        _module("GRU")(X, done=done)
    packed = torch.nn.utils.rnn.pack_padded_sequence(X, [T] * B)
    with pytest.raises(ValueError, match="lengths, reset, done and return_all_states belong to padded input"):
        _module("GRU")(packed, done=DONE)
    with pytest.raises(RuntimeError, match="lengths: expected 0 to 6"):
        _module("GRU")(X, lengths=[7, 1, 1], done=DONE)
