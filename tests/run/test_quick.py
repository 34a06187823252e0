"""The short way of an ordinary call: the numbers of the long one, and every surprise goes the long one."""

from __future__ import annotations

import collections
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn._run import quick

LAYERS = [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN]


def _noted(monkeypatch, name: str) -> list[bool]:
    """Of each call of a function of quick's, whether it gave results; None sends the call another way."""
    found, function = [], getattr(quick, name)

    def note(*args):
        result = function(*args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(quick, name, note)
    return found


@pytest.fixture
def taken(monkeypatch):
    """Whether each call went the short way."""
    return _noted(monkeypatch, "one_layer")


@pytest.fixture
def by_c(monkeypatch):
    """Whether each call of one layer was one of C."""
    return _noted(monkeypatch, "_inference")


def _flat(result) -> list[torch.Tensor]:
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]


def _state(module, rows: int):
    size = 2 if module.bidirectional else 1, rows
    h = torch.randn(*size, module.proj_size or module.hidden_size, dtype=module.weight_hh_l0.dtype)
    if module.mode != "LSTM":
        return h
    return h, torch.randn(*size, module.hidden_size, dtype=h.dtype)


OPTIONS = [
    {},
    {"batch_first": True},
    {"bidirectional": True, "bias": False},
    {"bidirectional": True, "batch_first": True},
    {"dtype": torch.float64, "save": "recompute"},
    {"dtype": torch.bfloat16, "backend": "fused"},
]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_both_ways_agree(taken, monkeypatch, kind, options, gradients, given):
    """Output, states and gradients are the same to the bit, by whichever way."""
    module = kind(3, 5, **options)
    hx = _state(module, 4) if given else None
    results = []
    for way in ("short", "long"):
        if way == "long":
            monkeypatch.setattr(quick, "one_layer", lambda *args: taken.append(False))
        x = torch.linspace(-1, 1, 4 * 4 * 3, dtype=module.weight_hh_l0.dtype).view(4, 4, 3)
        x.requires_grad_(gradients)
        with torch.set_grad_enabled(gradients):
            found = _flat(module(x, hx))
        if gradients:
            found += torch.autograd.grad(sum(t.sum() for t in found), [x, *module.parameters()])
        results.append(found)
    assert taken == [True, False]
    for short, long in zip(*results, strict=True):
        assert torch.equal(short, long)
        assert short.stride() == long.stride()
        assert short.requires_grad == long.requires_grad


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_single_sequence(taken, kind, options, given):
    """Without a batch's dimension, in and out, as torch.nn's."""
    module, exact = kind(3, 5, **options), getattr(nn, kind.__name__)(3, 5, **options)
    exact.load_state_dict(module.state_dict())
    x, hx = torch.randn(4, 3), None
    if given:
        state = _state(module, 1)
        hx = tuple(s[:, 0] for s in state) if isinstance(state, tuple) else state[:, 0]
    for ours, theirs in zip(_flat(module(x, hx)), _flat(exact(x, hx)), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert taken == [True]
    with pytest.raises(RuntimeError, match="unbatched 2-D"):
        module(x, _state(module, 1))


def test_projection_with_a_state(taken):
    module = fastrnn.LSTM(3, 5, proj_size=2)
    exact = nn.LSTM(3, 5, proj_size=2)
    exact.load_state_dict(module.state_dict())
    x, hx = torch.randn(4, 2, 3), _state(module, 2)
    with torch.no_grad():
        for ours, theirs in zip(_flat(module(x, hx)), _flat(exact(x, hx)), strict=True):
            torch.testing.assert_close(ours, theirs)
        module(x)
    assert taken == [True, False]  # its two states of zeros differ in size


@pytest.mark.parametrize("rows", [4, 30_000, 40_000])
def test_zeros_are_the_kernels_alone(rows):
    """Results may be edited in place: the next call still begins with zeros, of however many rows."""
    module, x = fastrnn.LSTM(1, 1), torch.randn(1, rows, 1)
    with torch.inference_mode():
        first = [t.clone() for t in _flat(module(x))]
        for t in _flat(module(x)):
            t.fill_(7)
    with torch.no_grad():
        again = _flat(module(x))
        state = torch.zeros(1, rows, 1)
        given = _flat(module(x, (state, state)))
    for a, b, c in zip(first, again, given, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert a.shape == c.shape


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", [*OPTIONS, {"dtype": torch.float16}], ids=str)
@pytest.mark.parametrize("kind", [*LAYERS, lambda *a, **k: fastrnn.RNN(*a, nonlinearity="relu", **k)])
def test_inference_is_a_call_of_c(by_c, monkeypatch, kind, options, given, single):
    """Output and states are to the bit what Python's way gives, and lie as there."""
    module = kind(3, 5, **options)
    dtype = module.weight_hh_l0.dtype
    x = torch.randn((4, 3) if single else (4, 2, 3), dtype=dtype)
    rows = 1 if single else x.size(0 if module.batch_first else 1)
    hx = _state(module, rows) if given else None
    if single and given:
        hx = tuple(s[:, 0] for s in hx) if isinstance(hx, tuple) else hx[:, 0]
    with torch.no_grad():
        wide = torch.randn(*x.shape[:-1], 7, dtype=dtype)[..., 2:5]
        found = [_flat(module(t, hx)) for t in (x, wide)]
        assert by_c == [True, True]
        monkeypatch.setattr(quick, "_inference", lambda *_: None)
        for ours, t in zip(found, (x, wide), strict=True):
            for a, b in zip(ours, _flat(module(t, hx)), strict=True):
                assert torch.equal(a, b)
                assert (a.stride(), a.dtype, a.is_inference()) == (b.stride(), b.dtype, b.is_inference())


def test_what_is_not_c_s(by_c):
    """Gradients, profilers, projections, layers of several, steps in x, states of another kind."""
    module, x = fastrnn.LSTM(3, 5), torch.randn(2, 4, 3)
    state = _state(module, 4)
    module(x)
    assert by_c == []
    with torch.no_grad():
        with torch.profiler.profile():
            module(x)
        module(torch.randn(2, 4, 6)[..., ::2])
        module(x.to_mkldnn().to_dense(), [*state])
        module(x, tuple(nn.Parameter(s) for s in state))
        module(x, tuple(s.transpose(1, 2).contiguous().transpose(1, 2) for s in state))
        module(x, tuple(torch._neg_view(s) for s in state))
        module(torch._neg_view(x))
        fastrnn.LSTM(3, 5, proj_size=2)(x)
        fastrnn.LSTM(3, 5, num_layers=2)(x)
        fastrnn.LSTM(3, 5, zoneout=0.3).eval()(x)  # whose weights are those of the plain layer
        fastrnn.LSTM(3, 5, backend="reference")(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            module(x)
        module(torch.randn(300, 200, 3))  # results of more than a megabyte
        module.bias = 1
        module(x)
        module.bias = True
        module.num_layers = True
        module(x)
    assert len(by_c) >= 15
    assert not any(by_c)
    layer = fastrnn.LSTM(3, 5, zoneout=0.3).eval()
    with torch.no_grad():
        inference = layer(x)[0]
    torch.testing.assert_close(inference, layer(x)[0].detach())


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 7), ("hidden_size", None), ("proj_size", 2)])
def test_fields_that_do_not_fit_are_errors(field, value):
    """Whether or not gradients are recorded."""
    module = fastrnn.LSTM(3, 5)
    setattr(module, field, value)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), pytest.raises((RuntimeError, TypeError)):
            module(torch.randn(2, 4, 3))


def test_fields_of_another_kind_are_pythons(by_c):
    """What holds a module's fields need not be a dict alone."""
    module, x = fastrnn.LSTM(3, 5), torch.randn(2, 4, 3)
    want = module(x)[0].detach()
    module.__dict__ = collections.OrderedDict(module.__dict__)
    with torch.no_grad():
        assert torch.equal(module(x)[0], want)
    assert by_c == [False]


def test_nothing_is_left_of_a_call():
    """Neither a reference to an argument, nor one of its own results."""
    module, x = fastrnn.LSTM(3, 5, batch_first=True), torch.randn(2, 4, 3)
    state = tuple(torch.randn(1, 2, 5) for _ in range(2))
    held = [x, *state, *module.parameters(), module._flat_weights, module._parameters, state]
    with torch.no_grad():
        module(x, state)
        before = [sys.getrefcount(t) for t in held]
        for _ in range(100):
            y, last = module(x, state)
            module(x)
            quick._inference(module.__dict__, x, (state[0], None))
            quick._inference(module.__dict__, x[..., :2], None)
        assert [sys.getrefcount(t) for t in held] == before
        counts = [sys.getrefcount(y), sys.getrefcount(last[0])]
    assert counts == [2, 2]
    none = sys.getrefcount(None)
    gru = fastrnn.GRU(3, 5)
    with torch.no_grad():
        for _ in range(1000):
            gru(x)
    assert sys.getrefcount(None) - none < 500


class _Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names = [*getattr(self, "names", []), func.name()]
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class _Subclass(torch.Tensor):
    pass


def _changed(name: str, value) -> fastrnn.LSTM:
    module = fastrnn.LSTM(3, 5)
    setattr(module, name, value)
    return module


def test_surprises_go_the_long_way(taken):
    """Whatever has a meaning of its own: modes, transforms, subclasses, weights that are no parameters."""
    x, module = torch.randn(2, 4, 3), fastrnn.LSTM(3, 5)
    with torch.no_grad():
        module(x.as_subclass(_Subclass))
        module(x, list(_state(module, 4)))
        module(x, tuple(nn.Parameter(s) for s in _state(module, 4)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module(x)[0].dtype == torch.bfloat16
        with _Seen() as seen:
            module(x)
        assert any("new_zeros" in name for name in seen.names)  # programs are to see where a state comes from
        with _Functions():
            module(x)
        torch.func.vmap(module)(x.unsqueeze(0))
        torch.func.jvp(lambda t: module(t)[0], (x,), (x,))
        torch.func.functional_call(module, {n: p + 1 for n, p in module.named_parameters()}, (x,))
        parametrizations.weight_norm(fastrnn.LSTM(3, 5), "weight_hh_l0")(x)
        fastrnn.LSTM(3, 5, num_layers=2)(x)
        fastrnn.LSTM(3, 5, backend="reference")(x)
        fastrnn.LSTM(3, 5, backend="cudnn")(x)
        fastrnn.LSTM(3, 5, dtype=torch.complex64)(x.to(torch.complex64))
        module(x, lengths=[2, 1, 2, 0])
    assert not any(taken)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    ("module", "x", "hx", "message"),
    [
        (fastrnn.LSTM(3, 5), torch.ones(2, 4, 6), None, "Expected 3, got 6"),
        (fastrnn.LSTM(3, 5), torch.ones(0, 4, 3), None, "larger than 0"),
        (fastrnn.LSTM(3, 5), torch.ones(2, 4, 3, dtype=torch.float64), None, "does not match weight dtype"),
        (fastrnn.GRU(3, 5), torch.ones(2, 4, 3), torch.ones(1, 3, 5), r"Expected hidden size \(1, 4, 5\)"),
        (fastrnn.GRU(3, 5), torch.ones(2, 4, 3), torch.ones(2, 4, 5), r"Expected hidden size \(1, 4, 5\)"),
        (fastrnn.RNN(3, 5), torch.ones(2, 4, 3), torch.ones(4, 5), "should also be 3-D"),
        (fastrnn.RNN(3, 5), torch.ones(2, 4, 3), torch.ones(1, 4, 5).double(), "not the same dtype"),
        (fastrnn.LSTM(3, 5), torch.ones(2, 4, 3), torch.ones(1, 4, 5), "hidden states"),
        (fastrnn.LSTM(3, 5, device="meta"), torch.ones(2, 4, 3), None, "not at the same device"),
        (_changed("weight_hh_l0", None), torch.ones(2, 4, 3), None, "was the parameter deleted"),
        (_changed("bias_ih_l0", None), torch.ones(2, 4, 3), None, "was the parameter deleted"),
        (_changed("input_size", 4), torch.ones(2, 4, 3), None, "Expected 4, got 3"),
    ],
)
def test_errors_are_the_long_ways(taken, module, x, hx, message, gradients):
    """The operator finds what is wrong; torch's words for it are the long way's."""
    with torch.set_grad_enabled(gradients), pytest.raises(Exception, match=message):
        module(x, hx)
    assert not any(taken)


def test_new_weights_are_seen(taken):
    """A parameter that was replaced, an in-place step, another dtype: the next call computes with them."""
    module, x = fastrnn.GRU(3, 5), torch.randn(2, 4, 3)

    def fresh():
        exact = nn.GRU(3, 5, dtype=module.weight_hh_l0.dtype)
        exact.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(x)[0], exact(x)[0])

    with torch.no_grad():
        fresh()
        module.weight_hh_l0 = nn.Parameter(torch.randn(15, 5))
        fresh()
        module.weight_ih_l0.mul_(2)
        fresh()
        x = x.double()
        module.double()
        fresh()
    assert taken == [True] * 4


class _Stop(Exception):
    """What a hook may raise to end a computation, as torch.utils.checkpoint's does."""


@pytest.mark.parametrize("kind", LAYERS)
def test_hooks_of_saved_tensors_run_once(kind):
    """An exception of a hook's is the caller's, and the hooks are not asked a second time: checkpoint counts
    what it is given, and stops the second run when it has all."""
    module, x = kind(3, 5), torch.randn(2, 4, 3, requires_grad=True)
    packed = []

    def pack(tensor):
        packed.append(tensor)
        raise _Stop

    with pytest.raises(_Stop), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    assert len(packed) == 1
    grads = []
    for run in (module, lambda t: checkpoint(module, t, use_reentrant=False)):
        y = run(x)[0]
        grads.append(torch.autograd.grad(y.square().sum(), [x, *module.parameters()]))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_results_of_inference_mode(taken):
    """They are tensors of that mode, as any other function's."""
    module, x = fastrnn.LSTM(3, 5), torch.randn(2, 4, 3)
    with torch.inference_mode():
        assert all(t.is_inference() for t in _flat(module(x)))
    with torch.no_grad():
        assert not any(t.is_inference() or t.requires_grad for t in _flat(module(x)))
    assert taken == [True, True]


def test_threads_share_a_layer():
    """Calls of several Python threads at once, some of which let go of the interpreter."""
    module, xs = fastrnn.LSTM(40, 300), torch.randn(8, 4, 1, 40)
    with torch.inference_mode():
        expected = [module(x)[0].clone() for x in xs]

        def call(i: int) -> bool:
            with torch.inference_mode():
                return all(torch.equal(module(xs[i])[0], expected[i]) for _ in range(50))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(call, range(8)))


def test_weights_that_another_thread_replaces():
    """A call keeps the weights that it began with for as long as it computes, whatever becomes of the list of
    them: the values are the same, and only the memory is another's."""
    module, x = fastrnn.LSTM(40, 300), torch.randn(4, 1, 40)
    values = module.weight_hh_l0.detach().clone()
    with torch.inference_mode():
        expected = module(x)[0].clone()
    done = threading.Event()

    def replace() -> None:
        while not done.is_set():
            module.weight_hh_l0 = nn.Parameter(values.clone())
            torch.full_like(values, 1e9)  # what comes to lie where the last one was

    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        try:
            with torch.inference_mode():
                for _ in range(300):
                    assert torch.equal(module(x)[0], expected)
        finally:
            done.set()
        replacing.result()
