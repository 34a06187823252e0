"""Batches of streams, step(x, state, active=): the rows that have input as each of them alone, their states
where the batch keeps them, and nothing else of the batch touched."""

from __future__ import annotations

import copy

import pytest
import torch
from quantized_cases import make
from streaming_cases import TOLERANCE, WEIGHTS, close, flat, state_of
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn

STREAMS = 7
#: As a mask or as numbers, and whether the input has rows of all streams.
FORMS = [("mask", True), ("mask", False), ("numbers", True), ("numbers", False), ("unordered", False)]


def copied(state):
    return tuple(s.clone() for s in state) if isinstance(state, tuple) else state.clone()


def rows_of(state, index):
    parts = tuple(s[:, index].contiguous() for s in flat(state))
    return parts if isinstance(state, tuple) else parts[0]


def active_of(form, index):
    if form != "mask":
        return torch.tensor(index if form == "numbers" else index[::-1], dtype=torch.int64)
    return torch.isin(torch.arange(STREAMS), torch.tensor(index, dtype=torch.int64))


def check(stream, form, whole, index, tolerance, dtype=torch.float32):
    """One call against each stream alone; the output, the state before and after."""
    layer = stream.layer
    active = active_of(form, index)
    order = index[::-1] if form == "unordered" else index
    xs = torch.randn(STREAMS, layer.input_size).to(dtype)
    before = state_of(layer, STREAMS, dtype=dtype)
    state = copied(before)
    places = [s.data_ptr() for s in flat(state)]
    y, after = stream.step(xs if whole else xs[order], state, active=active)
    assert after is state
    assert places == [s.data_ptr() for s in flat(state)]
    assert y.shape == (STREAMS if whole else len(index), layer.proj_size or layer.hidden_size)
    others = [row for row in range(STREAMS) if row not in index]
    for old, new in zip(flat(before), flat(state), strict=True):
        assert torch.equal(old[:, others], new[:, others])
    if whole:
        assert not y[others].any()
    for at, row in enumerate(order):
        expected, end = stream.step(xs[row : row + 1], rows_of(before, [row]))
        close(y[row if whole else at][None], expected, tolerance)
        for e, found in zip(flat(end), flat(state), strict=True):
            close(found[:, row : row + 1], e, tolerance)
    return xs, before, state, y


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"num_layers": 3, "proj_size": 5}),
        ("LSTM", {"bias": False, "batch_first": True}),
        ("GRU", {"num_layers": 2}),
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
    ],
)
@torch.no_grad()
def test_active_rows_as_alone(isa, long_calls, name, options, weights):
    """Every form of `active` and of the input, one row, some and all: each stream as if it were alone, by the
    short way, and the bits of the long way."""
    layer = make(name, 6, 20, **options)
    stream = layer.streamer(weights)
    for form, whole in FORMS:
        for index in ([2], [0, 3, 4, 6], list(range(STREAMS))):
            xs, before, state, y = check(stream, form, whole, index, 5e-3 if weights == "int8" else 2e-6)
            assert not long_calls
            own = copied(before)
            active = active_of(form, index)
            given = xs if whole else xs[index[::-1] if form == "unordered" else index]
            with _Quiet():
                expected, _ = stream.step(given, own, active=active)
            assert long_calls
            long_calls.clear()
            assert torch.equal(y, expected)
            assert all(torch.equal(a, b) for a, b in zip(flat(state), flat(own), strict=True))
            out = torch.full_like(y, 7.0)
            own = copied(before)
            assert stream.step_(given, own, out=out, active=active) is out
            assert not long_calls
            assert all(torch.equal(a, b) for a, b in zip(flat(state), flat(own), strict=True))
            if whole:
                others = [row for row in range(STREAMS) if row not in index]
                assert (out[others] == 7).all()
                assert torch.equal(out[index], y[index])
            else:
                assert torch.equal(out, y)


class _Quiet(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_dtypes(isa, long_calls, dtype):
    """Weights as they are, of every dtype that has kernels, with registers that the units do not fill."""
    for name, options in (("LSTM", {"num_layers": 2}), ("GRU", {}), ("LSTM", {"proj_size": 9})):
        stream = make(name, 6, 37, **options).to(dtype).streamer()
        for form, whole in FORMS:
            check(stream, form, whole, [1, 2, 5], TOLERANCE[dtype], dtype)
    assert not long_calls


@torch.no_grad()
def test_threads(isa, threads):
    """Work that several threads share, by rows and by units."""
    threads(4)
    for weights in WEIGHTS:
        stream = make("LSTM", 64, 192, num_layers=2).streamer(weights)
        for form, whole in FORMS:
            check(stream, form, whole, [0, 1, 3, 4, 6], 5e-3 if weights == "int8" else 5e-6)


@torch.no_grad()
def test_layers_without_packed_weights():
    """Variants, weights of which torch counts no changes, and the reference take the long way to the same."""
    with torch.inference_mode():
        live = fastrnn.GRU(6, 9)
    reference = fastrnn.LSTM(6, 9, num_layers=2, backend="reference")
    for layer in (
        fastrnn.LSTM(6, 8, peephole=True, num_layers=2),
        fastrnn.GRU(6, 8, norm="layer"),
        fastrnn.LSTM(6, 8, heads=2),
        live,
        reference,
    ):
        stream = layer.eval().streamer()
        for form, whole in FORMS:
            for index in ([], [3], [0, 2, 5]):
                check(stream, form, whole, index, 2e-6)


@torch.no_grad()
def test_nobody_and_everybody(long_calls):
    """No row changes nothing; all of them are step()'s bits, in the order of the numbers."""
    for name in ("LSTM", "GRU"):
        layer = make(name, 6, 20, num_layers=2)
        stream = layer.streamer()
        nobody = torch.zeros(STREAMS, dtype=torch.bool)
        for active, rows in (
            (nobody, STREAMS),
            (nobody, 0),
            (torch.zeros(0, dtype=torch.int64), STREAMS),
            (torch.zeros(0, dtype=torch.int64), 0),
        ):
            before = state_of(layer, STREAMS)
            state = copied(before)
            y, _ = stream.step(torch.full((rows, 6), float("nan")), state, active=active)
            assert y.shape == (rows, 20)
            assert not y.any()
            assert all(torch.equal(a, b) for a, b in zip(flat(before), flat(state), strict=True))
        x, before, order = torch.randn(STREAMS, 6), state_of(layer, STREAMS), torch.randperm(STREAMS)
        expected, end = stream.step(x, before)
        for active, given in ((~nobody, x), (torch.arange(STREAMS), x), (order, x[order])):
            state = copied(before)
            y, _ = stream.step(given, state, active=active)
            assert torch.equal(y, expected[active] if active is order else expected)
            assert all(torch.equal(a, b) for a, b in zip(flat(end), flat(state), strict=True))


@torch.no_grad()
def test_rows_without_input_are_not_read():
    """NaN and infinities in a state or an input of others stay where they are."""
    layer = make("LSTM", 6, 20)
    for weights in WEIGHTS:
        stream = layer.streamer(weights)
        x, (h, c) = torch.randn(STREAMS, 6), state_of(layer, STREAMS)
        x[1::2], h[:, 1::2], c[:, 1::2] = float("nan"), float("inf"), float("nan")
        mask = torch.arange(STREAMS) % 2 == 0
        y, (h, c) = stream.step(x, (h, c), active=mask)
        assert y.isfinite().all()
        assert h[:, ::2].isfinite().all()
        assert c[:, ::2].isfinite().all()
        assert h[:, 1::2].isinf().all()
        assert c[:, 1::2].isnan().all()


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@torch.no_grad()
def test_a_server(name):
    """Streams with clocks of their own, over many ticks, are those that each ran alone; a state made by the
    first call, and the streamer's own."""
    layer = make(name, 5, 24, num_layers=2)
    stream = layer.streamer()
    sequences = [torch.randn(40, 5) for _ in range(STREAMS)]
    at, state, outputs = [0] * STREAMS, None, [[] for _ in range(STREAMS)]
    torch.manual_seed(5)
    for tick in range(30):
        mask = torch.rand(STREAMS) < 0.4
        index = mask.nonzero().squeeze(1)
        x = torch.stack([sequences[k][at[k]] for k in range(STREAMS)])
        if tick % 2 and state is not None:
            y, state = stream.step(x[index], state, active=index)
        else:
            y, state = stream.step(x, state, active=mask)
            y = y[index]
        out = torch.empty(STREAMS, 24)
        assert stream.step_(x, out=out, active=mask) is out
        assert torch.equal(out[index], y)
        for row, own in zip(index.tolist(), y, strict=True):
            outputs[row].append(own)
            at[row] += 1
    for a, b in zip(flat(state), flat(stream.state), strict=True):
        assert torch.equal(a, b)
    assert min(at)
    for row, steps in enumerate(at):
        alone, end = stream(sequences[row][:steps])
        close(torch.stack(outputs[row]), alone, 1e-5)
        for found, e in zip(flat(state), flat(end), strict=True):
            close(found[:, row], e, 1e-5)
    # A stream that ends makes room for another: its row is the server's to clear.
    for s in flat(state):
        s[:, 3] = 0
    y, _ = stream.step(sequences[0][:1], state, active=torch.tensor([3]))
    close(y, stream.step(sequences[0][:1])[0], 1e-6)


def test_errors_name_what_is_wrong():
    """One error each, and the state as it was."""
    layer = make("LSTM", 6, 20)
    stream = layer.streamer()
    x, state = torch.randn(STREAMS, 6), state_of(layer, STREAMS)
    before = copied(state)
    mask, some = torch.arange(STREAMS) < 3, torch.tensor([4, 1])
    two = x[:2]
    for match, call in {
        r"got 1 more than once": lambda: stream.step(two, state, active=torch.tensor([1, 1])),
        r"distinct rows from 0 to 6, got 7": lambda: stream.step(two, state, active=torch.tensor([0, 7])),
        r"distinct rows from 0 to 6, got -1": lambda: stream.step(two, state, active=torch.tensor([0, -1])),
        r"got shape \(2,\), torch.float32": lambda: stream.step(two, state, active=torch.tensor([0.0, 1.0])),
        r"got shape \(7,\), torch.uint8": lambda: stream.step(x, state, active=mask.to(torch.uint8)),
        r"got shape \(1, 2\), torch.int64": lambda: stream.step(two, state, active=some[None]),
        r"got shape \(\), torch.int64": lambda: stream.step(two, state, active=torch.tensor(1)),
        r"B = 7 rows of the state, got a mask of 6": lambda: stream.step(x, state, active=mask[:6]),
        r"the input's device, cpu, got meta": lambda: stream.step(x, state, active=mask.to("meta")),
        r"active should be a Tensor, got a list of 7": lambda: stream.step(x, state, active=[True] * STREAMS),
        r"of the 3 active rows or of all 7, got 5": lambda: stream.step(x[:5], state, active=mask),
        r"of the 2 active rows or of all 7, got 3": lambda: stream.step(x[:3], state, active=some),
        r"in ascending order": lambda: stream.step(x, state, active=some),
        r"active goes with an input of rows": lambda: stream.step(x[0], state, active=mask),
        r"which says how many rows": lambda: stream.step(two, active=some),
        r"Expected hidden\[1\] size": lambda: stream.step(two, (state[0], state[1][:, :3]), active=some),
        r"should also be 3-D": lambda: stream.step(two, (state[0][0], state[1][0]), active=some),
        r"memory of their own": lambda: stream.step(two, (state[0], state[0]), active=some),
        r"Expected 6, got 5": lambda: stream.step(two[:, :5], state, active=some),
        r"needs out=": lambda: stream.step_(two, state, active=some),
        r"out: expected shape \(2, 20\).*got \(7, 20\)": lambda: stream.step_(
            two, state, out=torch.zeros(7, 20), active=some
        ),
        r"no gradients": lambda: stream.step(two.clone().requires_grad_(), state, active=some),
        r"transforms": lambda: torch.func.vmap(lambda rows: stream.step(x, state, active=rows)[0])(
            mask[None]
        ),
    }.items():
        with pytest.raises((RuntimeError, ValueError, TypeError), match=match) as found:
            call()
        assert len(str(found.value).splitlines()) == 1
        assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True)), match
    stream.step_(x, out=torch.empty(7, 20), active=mask)
    with pytest.raises(ValueError, match="7 rows of the state, got a mask of 5"):
        stream.step_(x[:5], out=torch.empty(5, 20), active=mask[:5])
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="weight_hh_l0 has changed"):
        stream.step(two, state, active=some)


@torch.no_grad()
def test_surprises_go_the_long_way(long_calls):
    """Numbers of another width, a state in a list or with gaps, an input that is the state, strided rows: the
    same numbers, in the same places."""
    layer = make("LSTM", 20, 20)
    stream = layer.streamer()
    some, x, before = torch.tensor([1, 4]), torch.randn(2, 20), state_of(layer, STREAMS)
    own = copied(before)
    expected, _ = stream.step(x, own, active=some)
    assert not long_calls

    def same(y, state):
        assert long_calls
        long_calls.clear()
        assert torch.equal(y, expected)
        assert all(torch.equal(a, b) for a, b in zip(state, own, strict=True))

    same(*stream.step(x, state := copied(before), active=some.int()))
    y, state = stream.step(x, list(copied(before)), active=some)
    assert isinstance(state, list)
    same(y, state)
    apart = tuple(torch.zeros(1, STREAMS, 40)[..., ::2].copy_(s) for s in before)
    y, state = stream.step(x, apart, active=some)
    assert state is apart
    same(y, state)
    same(*stream.step(x.t().contiguous().t(), copied(before), active=some))
    same(*stream.step(x, copied(before), active=torch.tensor([1, 0, 4, 0])[::2]))
    # The input is a part of the state that is written.
    state = copied(before)
    state[0][0, 0] = x[0]
    state[0][0, 1] = x[1]
    own = copied(state)
    expected, _ = stream.step(x, own, active=torch.tensor([0, 1]))
    long_calls.clear()
    same(*stream.step(state[0][0, :2], state, active=torch.tensor([0, 1])))


@torch.no_grad()
def test_states_in_place_are_counted():
    """What autograd keeps of the state is seen to be gone."""
    layer = make("GRU", 5, 9)
    stream, state = layer.streamer(), torch.zeros(1, 3, 9)
    before = state._version
    stream.step(torch.randn(1, 5), state, active=torch.tensor([2]))
    assert state._version > before


@torch.no_grad()
def test_in_place_allocates_nothing():
    """torch's profiler sees not one allocation in step_()."""
    layer = make("LSTM", 32, 64)
    for weights in WEIGHTS:
        stream, x, out, state = (
            layer.streamer(weights),
            torch.randn(9, 32),
            torch.empty(9, 64),
            state_of(layer, 9),
        )
        mask, some, part = torch.arange(9) % 2 == 0, torch.tensor([3, 1]), torch.empty(2, 64)
        stream.step_(x, state, out=out, active=mask)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            for _ in range(20):
                stream.step_(x, state, out=out, active=mask)
                stream.step_(x[:2], state, out=part, active=some)
        assert not [
            e for e in profile.events() if e.name in ("[memory]", "aten::empty") or e.cpu_memory_usage
        ]


@pytest.mark.parametrize("packed", [True, False])
def test_compiled(packed):
    """torch.compile(fullgraph=True) of every form, and inference_mode: the eager numbers, in place."""
    layer = make("LSTM", 6, 20, num_layers=2) if packed else fastrnn.LSTM(6, 20, heads=2).eval()
    stream = layer.streamer()
    x, before = torch.randn(STREAMS, 6), state_of(layer, STREAMS)
    for form, whole in FORMS:
        index = [1, 2, 5]
        active = active_of(form, index)
        given = x if whole else x[index]
        with torch.no_grad():
            expected, end = stream.step(given, copied(before), active=active)
            compiled = torch.compile(
                lambda x, h, c, a: stream.step(x, (h, c), active=a), fullgraph=True, backend="aot_eager"
            )
            state = copied(before)
            y, after = compiled(given, *state, active)
        for a, b in zip((y, *after), (expected, *end), strict=True):
            close(a, b, 2e-6)
        for a, b in zip(state, end, strict=True):
            close(a, b, 2e-6)
        with torch.inference_mode():
            state = copied(before)
            y, _ = stream.step(given, state, active=active)
            close(y, expected, 0)
            close(state, end, 0)


@torch.no_grad()
def test_copies_and_loads():
    """A copied streamer has the same rows."""
    layer = make("GRU", 6, 20)
    stream = layer.streamer("int8")
    other = copy.deepcopy(stream)
    x, state = torch.randn(2, 6), torch.zeros(1, 4, 20)
    y, _ = stream.step(x, state.clone(), active=torch.tensor([3, 0]))
    assert torch.equal(other.step(x, state, active=torch.tensor([3, 0]))[0], y)
