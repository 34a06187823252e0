"""The short way of a streamer's calls, one call of C, and step_(): the numbers of the long way, no memory,
and every surprise goes the long way."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from quantized_cases import make
from streaming_cases import WEIGHTS, close, flat, state_of
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 3}, {"proj_size": 5, "num_layers": 2}, {"batch_first": True}]
)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@torch.no_grad()
def test_ordinary_calls_go_the_short_way(isa, long_calls, name, options, weights):
    """Steps and chunks, batched and not, from a state and from none, with rows that lie apart; and the
    results are those of the long way to the last bit."""
    if "proj_size" in options and name != "LSTM":
        options = {"num_layers": 2}
    layer = make(name, 6, 20, **options)
    stream = layer.streamer(weights)
    apart = torch.randn(3, 11)[:, 2:8]
    for x, hx in (
        (torch.randn(3, 6), state_of(layer, 3)),
        (torch.randn(3, 6), None),
        (apart, state_of(layer, 3)),
        (torch.randn(6), state_of(layer)),
        (torch.randn(6), None),
    ):
        y, state = stream.step(x, hx)
        assert not long_calls
        expected, end = stream._long_step(x, hx)
        long_calls.clear()
        assert torch.equal(y, expected)
        assert y.shape == expected.shape
        assert not y.requires_grad
        assert type(state) is type(end)
        for a, b in zip(flat(state), flat(end), strict=True):
            assert torch.equal(a, b)
            assert a.shape == b.shape
            assert a.is_contiguous()
    one = torch.randn(1, 4, 6) if layer.batch_first else torch.randn(4, 1, 6)
    for x, hx in ((one, state_of(layer, 1)), (torch.randn(4, 6), None)):
        y, _ = stream(x, hx)
        assert not long_calls
        assert y.shape == (*x.shape[:-1], layer.proj_size or 20)


@torch.no_grad()
def test_dtypes_go_the_short_way(long_calls):
    """Weights as they are, of every dtype that has kernels."""
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        layer = make("GRU", 6, 20).to(dtype)
        y, state = layer.streamer().step(torch.randn(2, 6, dtype=dtype), torch.zeros(1, 2, 20, dtype=dtype))
        assert not long_calls
        assert y.dtype == state.dtype == dtype


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("name", "options"), [("LSTM", {"num_layers": 2, "proj_size": 7}), ("GRU", {}), ("RNN", {})]
)
@torch.no_grad()
def test_steps_in_place(isa, long_calls, name, options, weights):
    """step_() with the streamer's own state, with a state given and with the whole result of step() are
    step()'s numbers to the last bit, and write into what was given."""
    layer = make(name, 6, 20, **options)
    stream = layer.streamer(weights)
    size = layer.proj_size or 20
    for rows in ((), (1,), (3,)):
        xs, state, whole = torch.randn(5, *rows, 6), None, None
        out = torch.full((*rows, size), float("nan"))
        own = tuple(torch.zeros_like(s) for s in flat(state_of(layer, *rows)))
        own = own if name == "LSTM" else own[0]
        places = [t.data_ptr() for t in flat(own)]
        stream.reset()
        assert stream.state is None
        for x in xs:
            y, state = stream.step(x, state)
            assert stream.step_(x, out=out) is out
            assert torch.equal(out, y)
            given = torch.empty_like(out)
            assert stream.step_(x, own, out=given) is given
            assert torch.equal(given, y)
            if whole is None:
                whole = stream.step(x)
            else:
                assert stream.step_(x, out=whole) is whole
                assert torch.equal(whole[0], y)
            for expected, *found in zip(
                flat(state), flat(own), flat(stream.state), flat(whole[1]), strict=True
            ):
                assert all(torch.equal(expected, f) for f in found)
        assert places == [t.data_ptr() for t in flat(own)]
        assert not long_calls


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@torch.no_grad()
def test_few_units_of_many_inputs_in_place(isa, threads, name):
    """A step of one row and few units is one thread's, though its inputs are work for several: another would
    begin from the state that the first has written."""
    threads(4)
    layer = make(name, 4096, 64)
    stream = layer.streamer()
    x, hx = torch.randn(1, 4096), state_of(layer, 1)
    y, after = stream.step(x, hx)
    out = torch.empty_like(y)
    for _ in range(200):
        own = tuple(s.clone() for s in flat(hx))
        stream.step_(x, own if name == "LSTM" else own[0], out=out)
        for found, expected in zip((out, *own), (y, *flat(after)), strict=True):
            assert torch.equal(found, expected)


@torch.no_grad()
def test_step_in_place_allocates_nothing():
    """Neither torch nor Python has more or other memory after a thousand steps, and torch's profiler sees not
    one allocation."""
    layer = make("LSTM", 32, 64)
    for weights in WEIGHTS:
        stream, x, out = layer.streamer(weights), torch.randn(1, 32), torch.empty(1, 64)
        hx = state_of(layer, 1)
        stream.step_(x, out=out)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            for _ in range(20):
                stream.step_(x, out=out)
                stream.step_(x, hx, out=out)
        assert not [
            e for e in profile.events() if e.name in ("[memory]", "aten::empty") or e.cpu_memory_usage
        ]
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            stream.step(x, hx)
        assert [e for e in profile.events() if e.name in ("[memory]", "aten::empty") or e.cpu_memory_usage]
        gc.collect()


@torch.no_grad()
def test_in_place_is_counted():
    """What autograd keeps of a tensor that step_() writes is seen to be gone, as with every operation in
    place."""
    layer = make("GRU", 5, 9)
    stream, out, hx = layer.streamer(), torch.zeros(1, 9), torch.zeros(1, 1, 9)
    before = out._version, hx._version
    stream.step_(torch.randn(1, 5), hx, out=out)
    assert out._version > before[0]
    assert hx._version > before[1]
    w = torch.randn(9, requires_grad=True)
    with torch.enable_grad():
        loss = (out * w).sum()
    stream.step_(torch.randn(1, 5), hx, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class _Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class _Noted(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_surprises_go_the_long_way(long_calls):
    """Modes, transforms, gradients, subclasses, other strides, dtypes and layouts, views with a sign to turn:
    the same numbers or the same errors as ever."""
    layer = make("GRU", 6, 20)
    stream = layer.streamer()
    x, h = torch.randn(2, 6), torch.randn(1, 2, 20)
    y = stream.step(x, h)[0]
    assert not long_calls

    def takes_the_long_way(call):
        long_calls.clear()
        found = call()[0]
        assert long_calls
        close(found, y, 1e-6)

    with _Seen() as mode:
        takes_the_long_way(lambda: stream.step(x, h))
    assert any("rnn_stream" in name for name in mode.names)
    with _Noted():
        takes_the_long_way(lambda: stream.step(x, h))
    takes_the_long_way(lambda: stream.step(x.t().contiguous().t(), h))
    takes_the_long_way(lambda: stream.step(x, torch.randn(1, 2, 40)[..., ::2].copy_(h)))
    takes_the_long_way(lambda: stream.step(torch.nn.Parameter(x, requires_grad=False), h))
    takes_the_long_way(lambda: stream.step(torch._neg_view(-x), h))
    takes_the_long_way(lambda: stream.step(torch.complex(x, -x).conj().imag, h))
    takes_the_long_way(lambda: stream.step(x, torch._neg_view(-h)))
    with torch.device("meta"):
        takes_the_long_way(lambda: stream.step(x, h))
    traced = torch.jit.trace(lambda a, b: stream.step(a, b), (x, h), check_trace=False)
    close(traced(x, h)[0], y, 1e-6)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert stream.step(x, h)[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
    for match, call in {
        "no gradients": lambda: stream.step(x.clone().requires_grad_(), h),
        "transforms": lambda: torch.func.vmap(lambda a: stream.step(a, h[:, 0])[0])(x),
        "Expected 6, got 5": lambda: stream.step(x[:, :5], h),
        "hidden size": lambda: stream.step(x, h[..., :5]),
        "1D or 2D, got 3D": lambda: stream.step(x[None], h),
        "should be a Tensor|tensor": lambda: stream.step("x", h),
    }.items():
        with pytest.raises((RuntimeError, ValueError, TypeError), match=match):
            call()
    with torch.inference_mode():
        close(stream.step(x, h)[0], y, 0)


@torch.no_grad()
def test_surprises_of_steps_in_place():
    """Outputs that overlap what is read, that are strided, or are none: right, or an error that names
    them."""
    layer = make("LSTM", 20, 20)
    stream = layer.streamer()
    x, (h, c) = torch.randn(1, 20), state_of(layer, 1)
    y, (hn, cn) = stream.step(x, (h, c))
    # Over the input, over h, over every second number.
    for kind in ("input", "h", "strided"):
        own, state = x.clone(), (h.clone(), c.clone())
        out = {"input": own, "h": state[0][0], "strided": torch.zeros(1, 40)[:, ::2]}[kind]
        stream.step_(own, state, out=out)
        assert torch.equal(out, y), kind
        assert torch.equal(state[1], cn)
        assert torch.equal(state[0], hn)
    wide = torch.zeros(1, 1, 40)[..., ::2]
    state = (wide.copy_(h), c.clone())
    stream.step_(x, state, out=(out := torch.empty(1, 20)))
    assert torch.equal(out, y)
    assert torch.equal(state[0], hn)
    both = h.clone()
    with pytest.raises(ValueError, match="h and c in memory of their own"):
        stream.step_(x, (both, both), out=torch.empty(1, 20))
    assert torch.equal(both, h)
    with pytest.raises(TypeError, match=r"step_\(\) needs out="):
        stream.step_(x)
    stream.reset()
    with pytest.raises(
        ValueError, match=r"out: expected shape \(1, 20\), torch.float32 on cpu, got \(1, 21\)"
    ):
        stream.step_(x, out=torch.empty(1, 21))
    with pytest.raises(ValueError, match=r"out: expected .* got \(1, 20\), torch.float64"):
        stream.step_(x, out=torch.empty(1, 20, dtype=torch.float64))
    stream.reset()
    stream.step_(x, out=torch.empty(1, 20))
    with pytest.raises(
        ValueError, match=r"the streamer's own state, \(1,\) rows, got shape \(2, 20\); reset\(\)"
    ):
        stream.step_(torch.randn(2, 20), out=torch.empty(2, 20))
    with torch.enable_grad(), pytest.raises(RuntimeError, match="no gradients"):
        stream.step_(x.clone().requires_grad_(), out=torch.empty(1, 20))
    layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="weight_hh_l0 has changed"):
        stream.step_(x, out=torch.empty(1, 20))


@torch.no_grad()
def test_streamers_without_packed_weights_step_in_place():
    """A variant and weights without versions have no short way, and the same step_()."""
    for layer in (fastrnn.LSTM(5, 8, peephole=True).eval(),):
        stream, x, out = layer.streamer(), torch.randn(3, 2, 5), torch.empty(2, 8)
        state = None
        for x_t in x:
            y, state = stream.step(x_t, state)
            assert torch.equal(stream.step_(x_t, out=out), y)


def test_own_state_outlives_inference_mode():
    """Steps in place go on outside of torch.inference_mode, where the first one was inside."""
    for layer in (fastrnn.LSTM(5, 8), fastrnn.GRU(5, 8, norm="layer")):
        stream, x, out = layer.eval().streamer(), torch.randn(2, 1, 5), torch.empty(1, 8)
        with torch.inference_mode():
            stream.step_(x[0], out=out)
        stream.step_(x[1], out=out)
        # Steps against steps: a sequence of a layer without packed weights may sum in another order.
        assert torch.equal(out, stream.step(x[1], stream.step(x[0])[1])[0])


@torch.no_grad()
def test_one_stream_on_many_threads():
    """Calls at the same time have memory of their own, and large ones let other threads run."""
    for hidden in (24, 300):
        layer = make("LSTM", 12, hidden, num_layers=2)
        stream = layer.streamer("int8")
        xs = torch.randn(4, 30, 1, 12)
        expected = []
        for x in xs:
            state = None
            for x_t in x:
                y, state = stream.step(x_t, state)
            expected.append(y)
        found: list = [None] * len(xs)

        def work(k, xs=xs, stream=stream, found=found):
            state = None
            for x_t in xs[k]:
                y, state = stream.step(x_t, state)
            found[k] = y

        threads = [threading.Thread(target=work, args=(k,)) for k in range(len(xs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_refresh_leaves_nothing_behind():
    """A thousand refreshes keep no old weights alive."""
    layer = make("GRU", 5, 9)
    stream = layer.streamer()
    with torch.no_grad():
        stream.step(torch.randn(1, 5))
    import weakref

    old = [weakref.ref(w) for w in stream._taken.weights]
    stream.refresh()
    gc.collect()
    assert all(ref() is None for ref in old)
