"""Arguments of modules and functions that nobody would write by hand: a right result, or one exception that
Python can catch.

Derandomized, so that a run tells of the code alone.
"""

from __future__ import annotations

import warnings

import torch
from fuzzing import CHANGES, EXCEPTIONS, SIZES, assert_same_numbers, changed, quiet
from helpers import flat
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import functional

x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
state = torch.zeros(2, 3, 7)
lengths = torch.tensor([4, 3, 1])
NAN, INF = float("nan"), float("inf")

INPUTS = st.sampled_from(
    [
        x,
        x[:, 0],
        x[0, 0],
        x[:0],
        x[:, :0],
        x[..., :0],
        x[None],
        x.mT,
        x.double(),
        x.half(),
        x.long(),
        x.to(torch.complex64),
        x.to("meta"),
        x.to_sparse(),
        x[:1].expand(4, 3, 5),
        x[..., ::2].repeat(1, 1, 2)[..., :5],
        x.flip(0),
        x * NAN,
        x.numpy(),
        x.tolist(),
        None,
        "x",
        3,
        pack_padded_sequence(x, lengths),
        PackedSequence(x[0], torch.tensor([1, 2])),
        PackedSequence(x[0], torch.tensor([3, 0])),
        PackedSequence(x[0], torch.tensor([4, -1])),
        PackedSequence(x[0], torch.tensor([2**62, 2**62, 2**62, 2**62 + 3])),
        PackedSequence(x[0], torch.tensor([2, 2])),
        PackedSequence(x[0], torch.tensor([], dtype=torch.int64)),
        PackedSequence(x[0], torch.tensor([2, 1]), torch.tensor([0, 7]), torch.tensor([0, 9])),
        PackedSequence(x[0], torch.tensor([2, 1]), torch.tensor([1, 0]), torch.tensor([1, 0])),
        PackedSequence(x[0].double(), torch.tensor([2, 1])),
        PackedSequence(x[0].to("meta"), torch.tensor([2, 1])),
        PackedSequence(x[0], torch.tensor([2.0, 1.0])),
        PackedSequence(x[:0, 0], torch.tensor([1])),
    ]
)
ONE_STATE = st.sampled_from(
    [
        None,
        state,
        state[0],
        state[:1],
        state[:, :2],
        state[..., :6],
        state[:0],
        state[None],
        torch.zeros(2, 2, 7),
        torch.zeros(2, 7),
        torch.zeros(2, 1, 7).expand(2, 3, 7),
        torch.zeros(2, 7, 3).mT,
        state.double(),
        state.half(),
        state.long(),
        state.to("meta"),
        state.to_sparse(),
        state + NAN,
        state + INF,
        "state",
        3.5,
        [],
        (),
        {},
    ]
)
STATES = (
    ONE_STATE
    | st.tuples(ONE_STATE)
    | st.tuples(ONE_STATE, ONE_STATE)
    | st.tuples(ONE_STATE, state_ := ONE_STATE, state_)
)


def _attempt(call):
    """Tensors of the result, or the exception."""
    try:
        return flat(call())
    except EXCEPTIONS as error:
        return error


@quiet(400)
@given(
    name=st.sampled_from(["LSTM", "GRU", "RNN"]),
    options=st.sampled_from(
        [{"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "batch_first": True}]
    ),
    input=INPUTS,
    hx=STATES,
    grad=st.booleans(),
)
def test_module_arguments(name, options, input, hx, grad):
    """The fused module and the reference: the same result, or an exception from both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        fused = getattr(fastrnn, name)(5, 7, backend="auto", **options)
        torch.manual_seed(0)
        reference = getattr(fastrnn, name)(5, 7, backend="reference", **options)
        with torch.set_grad_enabled(grad):
            got, want = (_attempt(lambda m=m: m(input, hx)) for m in (fused, reference))
    _same(got, want)
    if grad and not isinstance(got, Exception) and got[0].device.type == "cpu" and got[0].requires_grad:
        sum(t.sum() for t in got).backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in fused.parameters())


def _same(got, want):
    if isinstance(got, NotImplementedError):  # sparse: no kernel, though plain torch may come through
        return
    if isinstance(got, Exception) or isinstance(want, Exception):
        assert isinstance(got, Exception), f"a result where the reference says {want!r}"
        assert isinstance(want, Exception), f"{got!r} where the reference has a result"
        return
    for a, b in zip(got, want, strict=True):
        assert a.device == b.device
        if a.device.type == "cpu":
            assert_same_numbers(a, b, "result")
        else:
            assert a.shape == b.shape


@st.composite
def parameters(draw) -> list:
    """The weights of a GRU layer with one of them changed, missing, or one too many."""
    torch.manual_seed(0)
    weights = [t.detach() for t in fastrnn.GRU(5, 7).parameters()]
    i = draw(st.integers(0, 3))
    what = draw(st.sampled_from([*CHANGES, "meta", "missing", "more", "None", "text"]))
    if what in CHANGES:
        weights[i] = changed(weights[i], what)
    elif what == "more":
        weights.append(weights[i])
    elif what == "missing":
        weights.pop(i)
    else:
        weights[i] = {"meta": weights[i].to("meta"), "None": None, "text": "w"}[what]
    return weights


@quiet(200)
@given(
    input=INPUTS,
    hx=ONE_STATE,
    params=parameters(),
    options=st.fixed_dictionaries(
        {},
        optional={
            "num_layers": st.sampled_from([0, -1, 1]),
            "batch_first": st.booleans(),
            "save": st.sampled_from(["gates", "recompute", "everything"]),
            "batch_sizes": st.sampled_from(
                [None, *(torch.tensor(s) for s in SIZES.values()), [3, 2], "three"]
            ),
        },
    ),
)
def test_functional_arguments(input, hx, params, options):
    got, want = (
        _attempt(lambda b=backend: functional.gru(input, hx, params, backend=b, **options))
        for backend in ("auto", "reference")
    )
    _same(got, want)


@quiet(80)
@given(
    lengths=st.lists(st.sampled_from([0, -1, 1, 2, 4, 5, NAN, INF, 2**40, "4", None]), max_size=4),
    sort=st.booleans(),
)
def test_lengths(lengths, sort):
    """Lengths as a user has them, through torch's packing: what it lets through is right."""
    module = fastrnn.LSTM(5, 7)
    try:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=sort)
    except EXCEPTIONS:
        return
    with torch.no_grad():
        try:
            y, _ = module(packed)
        except RuntimeError:
            # torch packs as many rows as there are, even where the lengths ask for more.
            if packed.batch_sizes.sum() == len(packed.data):
                raise
            return
        y, found = pad_packed_sequence(y)
        for row, length in enumerate(found.tolist()):
            alone, _ = module(x[:length, row])
            assert_same_numbers(y[:length, row], alone, "row")
