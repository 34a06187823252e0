"""Arguments nobody would write by hand: a right result, or one exception that Python can catch.

A crash would end the whole run; results are compared with the reference. Derandomized, so that a run tells of
the code alone.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import layer_cases
import pytest
import torch
from helpers import flat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_cases import CELLS, DTYPES, Case, Problem, names, problem, worst
from tolerances import assert_close
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import _ops, functional
from fastrnn._autograd import layer


def quiet(examples: int):
    """Settings of every test here: the same examples each time, however long one takes."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


ISAS = _ops.available_cpu_isas()
F32 = torch.float32
EXCEPTIONS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError)


@pytest.fixture(autouse=True)
def _restore_isa():
    before = _ops.cpu_isa()
    yield
    _ops.set_cpu_isa(before)


# ---- valid layers --------------------------------------------------------------------------------


@st.composite
def cases(draw) -> Case:
    cell = draw(st.sampled_from(CELLS))
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(st.none() | st.lists(st.integers(1, 12), min_size=1, max_size=8))
    half = dtype in (torch.bfloat16, torch.float16)
    kinked = cell == "rnn_relu" and half  # the bias keeps relu away from 0, and small products do
    # An error is measured against the largest of a tensor's values. In a sum over rows and steps little may
    # be left of one of them, but not of the largest of several.
    size = st.just(6) if kinked else st.integers(8 if half else 5, 40)
    return Case(
        cell,
        T=draw(st.integers(1, 8)),
        B=draw(st.integers(1, 20)),
        IN=draw(size),
        H=draw(size),
        P=draw(st.just(0) | size) if cell == "lstm" else 0,
        D=draw(st.integers(1, 2)),
        bias=True if kinked else draw(st.booleans()),
        dtype=dtype,
        sizes=tuple(sorted(sizes, reverse=True)) if sizes else None,
        save=draw(st.sampled_from(["gates", "recompute"])),
        strided=draw(st.booleans()),
    )


def _fused(case: Case, p: Problem) -> list[torch.Tensor]:
    leaves = [t.detach().requires_grad_() for t in [p.x, p.h0, *([] if p.c0 is None else [p.c0]), *p.weights]]
    x, h0, *weights = leaves
    c0 = weights.pop(0) if case.cell == "lstm" else None
    results = layer(
        x, h0, c0, weights, cell=case.cell, bias=case.bias, batch_sizes=p.batch_sizes, save=case.save
    )
    outputs = [t for t in results if t is not None]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, leaves, p.cotangents)]


@quiet(60)
@given(case=cases(), isa=st.sampled_from(ISAS), threads=st.integers(1, 3), seed=st.integers(0, 3))
def test_valid_layers(case, isa, threads, seed):
    _ops.set_cpu_isa(isa)
    torch.set_num_threads(threads)
    p = problem(case, seed)
    ratio, what = worst(case, _fused(case, p), layer_cases.expected(case, p))
    assert ratio <= 1, f"{case} {isa} {threads} threads: {what}"


# ---- arguments of the layer that may be wrong ----------------------------------------------------

ROUTES = {"fused": layer, "reference": fastrnn.reference.layer}


def _outcome(route: str, case: Case, arguments: dict):
    """The outputs, or the exception."""
    try:
        with torch.no_grad():
            found = ROUTES[route](
                arguments["x"],
                arguments["h0"],
                arguments["c0"],
                arguments["weights"],
                cell=case.cell,
                bias=case.bias,
                batch_sizes=arguments["batch_sizes"],
            )
    except EXCEPTIONS as error:
        return error
    return [t for t in found if t is not None]


#: What may happen to a tensor on the way. The harmless ones first.
CHANGES = {
    "transposed strides": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "expanded": lambda t: t[:1].expand_as(t),
    "gaps": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "negative bit": lambda t: torch.imag(torch.complex(t.float(), t.float()).conj()).to(t.dtype),
    "a parameter": lambda t: torch.nn.Parameter(t),
    "a row less": lambda t: t[:-1],
    "a column less": lambda t: t[..., :-1],
    "nothing": lambda t: t[:0],
    "no columns": lambda t: t[..., :0],
    "a dimension more": lambda t: t[None],
    "a dimension less": lambda t: t[0],
    "flat": lambda t: t.reshape(-1),
    "transposed": lambda t: t.mT if t.dim() > 1 else t,
    "doubled": lambda t: torch.cat([t, t]),
    "float64": lambda t: t.double(),
    "half": lambda t: t.half(),
    "integers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "NaN": lambda t: t * float("nan"),
    "infinite": lambda t: t / 0,
}
SIZES = {
    "rising": [1, 2, 3],
    "zero": [3, 2, 0, 0],
    "negative": [9, -3],
    "smallest": [5, -(2**63)],
    "largest": [2**63 - 1, 1],
    "too many": [9, 9, 9],
    "floats": [3.0, 2.0],
    "NaN": [float("nan"), 1.0],
    "infinite": [float("inf"), 1.0],
    "none": [],
    "nested": [[3, 2]],
    "bools": [True, True],
}


@quiet(250)
@given(data=st.data())
def test_layer_arguments(data):
    """One or two arguments are changed: the fused layer raises, or gives what the reference gives."""
    case = data.draw(
        st.builds(
            Case,
            cell=st.sampled_from(CELLS),
            D=st.integers(1, 2),
            bias=st.booleans(),
            dtype=st.just(F32),
            sizes=st.sampled_from([None, (5, 4, 2, 1)]),
        )
    )
    if case.cell == "lstm" and data.draw(st.booleans()):
        case = replace(case, P=3)
    p = problem(case)
    arguments = {"x": p.x, "h0": p.h0, "c0": p.c0, "weights": list(p.weights), "batch_sizes": p.batch_sizes}
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from([*arguments, "weights", "number of weights"]))
        change = data.draw(st.sampled_from(list(CHANGES)))
        if name == "batch_sizes":
            sizes = data.draw(st.sampled_from(list(SIZES)))
            arguments["batch_sizes"] = torch.tensor(SIZES[sizes])
        elif name == "number of weights":
            if data.draw(st.booleans()):
                arguments["weights"].pop()
            else:
                arguments["weights"].append(torch.zeros(28))
        elif name == "weights" and arguments["weights"]:
            i = data.draw(st.integers(0, len(arguments["weights"]) - 1))
            arguments["weights"][i] = _changed(arguments["weights"][i], change)
        elif name != "weights" and arguments[name] is not None:
            arguments[name] = _changed(arguments[name], change)
    got = _outcome("fused", case, arguments)
    if isinstance(got, Exception):
        return
    want = _outcome("reference", case, arguments)
    assert not isinstance(want, Exception), f"a result where the reference says {want!r}"
    for label, a, b in zip(names(case), got, want, strict=False):
        _close(a, b, label)


def _changed(t, change):
    """t changed, or t where the change has no meaning (an earlier one left too little)."""
    try:
        return CHANGES[change](t)
    except (RuntimeError, IndexError):
        return t


def _close(a, b, label):
    """NaN and infinities in the same places, the rest within tolerance."""
    assert a.shape == b.shape, label
    assert a.dtype == b.dtype, label
    finite = b.isfinite()
    assert torch.equal(a.isfinite(), finite), label
    assert_close(a[finite], b[finite], torch.float32, slack=2, what=label)


# ---- through modules and functions ---------------------------------------------------------------

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
            _close(a, b, "result")
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
        weights[i] = _changed(weights[i], what)
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
            _close(y[:length, row], alone, "row")
