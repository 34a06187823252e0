"""Modules on a real GPU, with every backend, against torch.nn on the same GPU."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DEVICE, MARKS, TIERS, takes
from helpers import flat, randn
from layer_cases import DTYPES, Case
from tolerances import TOLERANCES, TORCH_SLACK, assert_close, error
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.proof import numbers

pytestmark = MARKS


@pytest.mark.parametrize(
    ("name", "dtype"), [("LSTM", torch.float16), ("GRU", torch.bfloat16), ("RNN", torch.float32)]
)
@pytest.mark.parametrize("backend", [*TIERS, "cudnn", "auto"])
def test_backends_of_a_module(name, dtype, backend):
    """Modules with every backend: as cuDNN within the tolerance; cuDNN itself to the bit."""
    theirs = getattr(nn, name)(32, 64).to(DEVICE, dtype)
    ours = getattr(fastrnn, name)(32, 64, backend=backend).to(DEVICE, dtype)
    ours.load_state_dict(theirs.state_dict())
    x = randn(20, 8, 32).to(DEVICE, dtype)
    case = Case("lstm", T=20, B=8, IN=32, H=64, dtype=dtype, tier=backend if backend in TIERS else "auto")
    if not takes(case):
        with pytest.raises(RuntimeError, match="cannot run"):
            ours(x)
        return
    for g, w in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        if backend == "cudnn":
            assert torch.equal(g, w)
        else:
            assert_close(g, w, dtype, slack=TORCH_SLACK[dtype])


MODULES = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 24}),
    ("GRU", {}),
    ("RNN", {"nonlinearity": "tanh"}),
]
IN, H = 32, 64


def module_results(module: nn.Module, x, hx=None) -> list[torch.Tensor]:
    """Outputs and every gradient, on the CPU, of a loss that weighs each output with numbers of its own."""
    module.zero_grad()
    out = flat(module(x) if hx is None else module(x, hx))
    cotangents = [randn(*t.shape, seed=7 + i).to(t) for i, t in enumerate(out)]
    torch.autograd.backward(out, cotangents)
    return [t.detach().cpu() for t in out] + [w.grad.cpu().clone() for w in module.parameters()]


def pair(name: str, dtype: torch.dtype, **options) -> tuple[nn.Module, nn.Module, nn.Module]:
    """fastrnn's module and torch's on the GPU with the same weights, and torch's in float64 on the CPU."""
    torch.manual_seed(0)
    theirs = getattr(nn, name)(IN, H, **options).to(dtype)
    ours = getattr(fastrnn, name)(IN, H, **options).to(dtype)
    exact = getattr(nn, name)(IN, H, **options).double()
    ours.load_state_dict(theirs.state_dict())
    exact.load_state_dict(theirs.state_dict())
    return ours.to(DEVICE), theirs.to(DEVICE), exact


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), MODULES)
def test_modules_are_torchs(name, options, dtype, packed):
    """Two bidirectional layers, as good as cuDNN against float64, and close to it."""
    ours, theirs, exact = pair(name, dtype, num_layers=2, bidirectional=True, **options)
    x = randn(17, 5, IN).to(dtype)
    lengths = torch.tensor([17, 4, 9, 9, 1])

    def given(t):
        return pack_padded_sequence(t, lengths, enforce_sorted=False) if packed else t

    want = module_results(exact, given(x.double()))
    got = module_results(ours, given(x.to(DEVICE)))
    same_type = module_results(theirs, given(x.to(DEVICE)))
    for i, (g, t, w) in enumerate(zip(got, same_type, want, strict=True)):
        gradient = i >= len(got) - len(list(ours.parameters()))
        assert g.dtype == t.dtype == dtype
        assert_close(g, w, dtype, gradient=gradient, slack=2.0, what=f"{i}")  # two layers
        assert_close(g, t, dtype, gradient=gradient, slack=2.0 * TORCH_SLACK[dtype], what=f"{i}")


def test_backward_in_eval_mode():
    """cuDNN refuses this; fastrnn has no such mode."""
    ours, theirs, _ = pair("LSTM", torch.float32)
    x = randn(9, 3, IN).to(DEVICE)
    want = module_results(theirs.train(), x)
    for got, w in zip(module_results(ours.eval(), x), want, strict=True):
        assert_close(got, w, torch.float32, gradient=True, slack=2.0)


def test_autocast():
    ours, theirs, _ = pair("LSTM", torch.float32)
    x = randn(9, 3, IN).to(DEVICE)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype):
            got, want = flat(ours(x)), flat(theirs(x))
        for g, w in zip(got, want, strict=True):
            assert g.dtype == w.dtype == dtype
            assert_close(g, w, dtype, slack=TORCH_SLACK[dtype])


def test_modules_follow_cudnns_tf32_setting():
    """torch.backends.cudnn.rnn decides, forward and backward, as it does for nn.LSTM."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    ours, _, exact = pair("LSTM", torch.float32)
    x = randn(9, 16, IN)
    want = module_results(exact, x.double())
    errors = {}
    for allowed in (False, True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            got = module_results(ours, x.to(DEVICE))
        errors[allowed] = max(error(g, w) for g, w in zip(got, want, strict=True))
    assert errors[False] <= 2 * TOLERANCES[torch.float32].gradient
    assert errors[False] < errors[True] <= numbers.TF32_TOLERANCE.gradient
