"""What the tests of modules share: pairs of modules with the same weights, all results of one call, calls
from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from tolerances import TORCH_SLACK, assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")

# Seconds after which a program counts as one that hangs. Each needs seconds by itself; on a machine that had
# others' work to do first, two Pythons' imports of torch alone took minutes.
HANGS_S = 1800


def pair(name: str, *args, **kwargs) -> tuple[nn.Module, nn.Module]:
    """fastrnn's module and torch's, with the same weights. `save` and `backend` go to fastrnn's alone."""
    own = {k: kwargs.pop(k) for k in ("save", "backend") if k in kwargs}
    torch.manual_seed(0)
    theirs = getattr(nn, name)(*args, **kwargs)
    ours = getattr(fastrnn, name)(*args, **own, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def flat(result) -> list[Tensor]:
    """The tensors of a module's result, in order."""
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in flat(part)]


def _leaf(value, dtype):
    """A copy that asks for its gradient, with strides as they are."""
    if value is None:
        return None
    if isinstance(value, PackedSequence):
        return PackedSequence(_leaf(value.data, dtype), *value[1:])
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format).to(dtype).requires_grad_()
    return type(value)(_leaf(v, dtype) for v in value)


def results(module: nn.Module, input, hx=None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Outputs, final states and every gradient of one call, by name.

    Every output has a gradient of its own, drawn in the input's dtype whatever dtype the call runs in, so
    that a run in float64 stands for the same numbers.
    """
    data = input.data if isinstance(input, PackedSequence) else input
    x, state = _leaf(input, dtype or data.dtype), _leaf(hx, dtype or data.dtype)
    module.zero_grad()
    out = flat(module(x) if state is None else module(x, state))
    cotangents = [randn(*t.shape, dtype=data.dtype, seed=7 + i).to(t.dtype) for i, t in enumerate(out)]
    torch.autograd.backward(out, cotangents)
    found = dict(zip(("y", "h", "c"), out, strict=False))
    found["grad x"] = (x.data if isinstance(x, PackedSequence) else x).grad
    for label, t in zip(("h0", "c0"), () if state is None else flat(state), strict=False):
        found[f"grad {label}"] = t.grad
    for label, w in module.named_parameters():
        found[f"grad {label}"] = w.grad.clone()
    return found


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], dtype: torch.dtype, slack: float = 1.0):
    """Every result within tolerance, and none missing."""
    assert ours.keys() == theirs.keys()
    for label, expected in theirs.items():
        gradient = label.startswith("grad")
        assert_close(ours[label], expected, dtype, gradient=gradient, slack=slack, what=label)


def compare(ours: nn.Module, theirs: nn.Module, input, hx=None) -> None:
    """ours against theirs in the same dtype and against theirs in float64, outputs and every gradient."""
    dtype = (input.data if isinstance(input, PackedSequence) else input).dtype
    got = results(ours, input, hx)
    expected = results(theirs, input, hx)
    for label, value in expected.items():
        assert got[label].dtype == value.dtype, f"{label}: {got[label].dtype}, not {value.dtype}"
    assert_same(got, expected, dtype, TORCH_SLACK[dtype])
    wide = torch.complex128 if dtype.is_complex else torch.float64
    if dtype != wide:
        exact = results(theirs.to(wide), input, hx, wide)
        theirs.to(dtype)
        assert_same(got, exact, dtype)


def onednn_has_bf16_lstm() -> bool:
    """Whether torch's own LSTM runs bfloat16 on this processor: oneDNN has a kernel from AVX-512 on. Without
    one torch raises or answers in another dtype."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class KernelSpy(TorchDispatchMode):
    """Counts the calls of fastrnn's operators in a block."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.namespace == "fastrnn"
        return func(*args, **(kwargs or {}))


def kernels_called(call) -> int:
    """How many of fastrnn's operators a function calls."""
    with KernelSpy() as spy:
        call()
    return spy.calls


def at_once(count: int, work: Callable[[int], object], times: int = 10) -> None:
    """work(i) in `count` threads that begin together, so many times in each; the first failure is raised."""
    failures, barrier = [], threading.Barrier(count)

    def run(i: int) -> None:
        try:
            barrier.wait()
            for _ in range(times):
                work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
