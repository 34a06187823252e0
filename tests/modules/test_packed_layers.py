"""PackedSequences of the layers that are no torch.nn's (MinGRU, MinLSTM, IndRNN, SLSTM): the numbers, states
and gradients of the same rows with lengths."""

from __future__ import annotations

import pytest
import torch
from helpers import randn
from tolerances import assert_close
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn

IN, H = 3, 4
LENGTHS = torch.tensor([2, 5, 1, 3])
LAYERS = [
    (fastrnn.MinGRU, {"log_space": True}),
    (fastrnn.MinLSTM, {}),
    (fastrnn.IndRNN, {}),
    (fastrnn.SLSTM, {"num_heads": 2}),
]
of_each = pytest.mark.parametrize(("cls", "options"), LAYERS, ids=lambda v: getattr(v, "__name__", ""))


def build(cls, options, **more):
    torch.manual_seed(0)
    return cls(IN, H, 2, bidirectional=True, dtype=torch.float64, **more, **options)


def first_state(cls):
    h = randn(4, 4, H, dtype=torch.float64).abs() + 0.1
    return (h, h + 0.1, h + 0.2, h - 0.3) if cls is fastrnn.SLSTM else h


def flat(state):
    return state if isinstance(state, tuple) else (state,)


@of_each
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_packed_is_lengths(cls, options, batch_first, begun):
    """Rows in any order come back in that order, with the states of their own last steps."""
    layer = build(cls, options, batch_first=batch_first)
    shape = (4, 5, IN) if batch_first else (5, 4, IN)
    x, hx = randn(*shape, dtype=torch.float64).requires_grad_(), first_state(cls) if begun else None
    packed = pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False)
    y, state = layer(packed, hx)
    assert isinstance(y, PackedSequence)
    assert torch.equal(y.sorted_indices, packed.sorted_indices)
    padded, lengths = pad_packed_sequence(y, batch_first)
    assert torch.equal(lengths, LENGTHS)
    found = [padded, *flat(state)]
    y, state = layer(x, hx, lengths=LENGTHS)
    want = [y, *flat(state)]
    for a, b in zip(found, want, strict=True):
        assert_close(a, b, torch.float64)
    leaves = [x, *layer.parameters()]
    grads = [torch.autograd.grad(sum((t * t.cos()).sum() for t in ts), leaves) for ts in (found, want)]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, torch.float64, gradient=True)


@of_each
def test_packed_compiles(cls, options):
    """In one graph, of sorted rows and others, with a state and without."""
    layer = build(cls, options)
    x = randn(5, 4, IN, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for packed, hx in (
        (pack_padded_sequence(x, LENGTHS, enforce_sorted=False), first_state(cls)),
        (pack_padded_sequence(x, LENGTHS, enforce_sorted=False), None),
        (pack_padded_sequence(x, [5, 3, 3, 1]), first_state(cls)),
    ):
        found, want = compiled(packed, hx), layer(packed, hx)
        assert_close(found[0].data, want[0].data, torch.float64)
        for a, b in zip(flat(found[1]), flat(want[1]), strict=True):
            assert_close(a, b, torch.float64)


@of_each
def test_wrong_packs(cls, options):
    """One error that says what was expected, whatever the PackedSequence holds."""
    layer, data = build(cls, options), randn(6, IN, dtype=torch.float64)
    for sizes, text in (
        ([3, 2], "add up to"),
        ([2, 4], "never increase"),
        ([6, 0], "positive"),
        ([], "batch_sizes is empty"),
    ):
        with pytest.raises(RuntimeError, match=text):
            layer(PackedSequence(data, torch.tensor(sizes, dtype=torch.int64)))
    good = PackedSequence(data, torch.tensor([4, 2]))
    with pytest.raises(RuntimeError, match="input_size"):
        layer(PackedSequence(data[:, :2], torch.tensor([4, 2])))
    with pytest.raises(RuntimeError, match="2 dimensions"):
        layer(PackedSequence(data[0], torch.tensor([3])))
    with pytest.raises(ValueError, match="belong to padded input, got a PackedSequence"):
        layer(good, lengths=[2, 2, 1, 1])
    short = first_state(cls)
    short = tuple(s[:, :3] for s in short) if isinstance(short, tuple) else short[:, :3]
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        layer(good, short)
    with pytest.raises((TypeError, RuntimeError)):
        layer(good, ())
