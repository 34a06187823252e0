"""The CUDA kernels on a real GPU: against the float64 reference, and against torch.nn on the same GPU.

What can be seen without one is in test_cuda_emulated.py and test_cuda_compile.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import what_ran
from helpers import flat, randn
from layer_cases import (
    CELLS,
    DTYPES,
    PACKED,
    Case,
    backward,
    expected,
    forward,
    fused,
    grid,
    masked_grid,
    problem,
    spread,
    worst,
)
from tolerances import TOLERANCES, TORCH_SLACK, assert_close, error
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import _C, reference
from fastrnn._plan import gpus
from fastrnn.proof import numbers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

DEVICE = "cuda"
ops = torch.ops.fastrnn


@pytest.fixture(autouse=True)
def _ieee():
    """float32 products in float32, unless a test says otherwise."""
    # flags() rather than an assignment, which torch.testing's own helpers forbid once they are imported.
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    matmul.allow_tf32 = before


def inputs(p):
    return [t for t in (p.x, p.h0, p.c0, *p.weights) if t is not None]


def on_gpu(case: Case, seed: int = 0):
    moved = problem(case, seed).map(lambda t: t.to(DEVICE))
    return moved.map(spread) if case.strided else moved  # moving closes gaps


LARGER = [
    Case(cell, T=40, B=B, IN=96, H=H, D=D, dtype=dtype)
    for cell in CELLS
    for dtype in DTYPES
    for B, H, D in ((16, 256, 1), (3, 100, 2), (64, 650, 1))
]


@pytest.mark.parametrize("case", [*grid(), *masked_grid(), *LARGER], ids=str)
def test_layer(case):
    """Outputs and every gradient against the reference."""
    ratio, what = worst(case, fused(ops, case, on_gpu(case)), expected(case, problem(case)))
    assert ratio <= 1, what


TIERS = ("one_cta", "cluster", "grid", "stepwise")


def takes(case: Case) -> bool:
    """Whether the case's tier can run both passes on this GPU, as the plan says."""
    steps, rows = (len(case.sizes), case.sizes[0]) if case.sizes else (case.T, case.B)
    shape = {"T": steps, "B": rows, "I": case.IN, "H": case.H, "P": case.P, "directions": case.D}
    dtype = str(case.dtype).removeprefix("torch.")
    gpu = gpus.find().properties()
    plan = _C.plan(
        device="cuda",
        cell=case.cell,
        **shape,
        dtype=dtype,
        training=True,
        gpu=gpu,
        tf32=case.tf32,
        tier=case.tier,
    )
    return plan["possible"] and plan["backward"]["possible"]


def tier_cases() -> list[Case]:
    """Every tier, cell and type; directions, packed rows and ways of saving in turn; odd sizes."""
    found = []
    types = [(dtype, False) for dtype in DTYPES] + [(torch.float32, True)]
    for tier in TIERS:
        for i, cell in enumerate(CELLS):
            for k, (dtype, tf32) in enumerate(types):
                plain = Case(cell, IN=24, dtype=dtype, tf32=tf32, tier=tier)
                save = "recompute" if (i + k) % 2 else "gates"
                for T, B, H, D in (
                    (1, 1, 1, 1),
                    (12, 9, 33, 2),
                    (30, 16, 64, 1),
                    (17, 100, 96, 2),
                    (9, 3, 128, 1),
                ):
                    found.append(replace(plain, T=T, B=B, H=H, D=D, save=save))
                found.append(replace(plain, H=40, D=1 + (i + k) % 2, sizes=PACKED, bias=k != 2 or i == 3))
                if tier != "one_cta":
                    for T, B, H, D in ((10, 1, 256, 2), (8, 33, 650, 1), (6, 16, 1024, 1)):
                        found.append(replace(plain, T=T, B=B, H=H, D=D, save=save))
    return found


@pytest.mark.parametrize("case", tier_cases(), ids=str)
def test_tier(case):
    """Each tier by name against the reference, and no other in its place; what it cannot take is one error,
    and no wrong number."""
    if takes(case):
        with what_ran.only(ops, case.tier):
            got = fused(ops, case, on_gpu(case))
        ratio, what = worst(case, got, expected(case, problem(case)))
        assert ratio <= 1, what
        return
    p = on_gpu(case)
    with pytest.raises(RuntimeError, match=f"tier '{case.tier}' cannot run"):
        backward(ops, case, p, forward(ops, case, p))


@pytest.mark.parametrize("first", TIERS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_tiers_mix(cell, first):
    """Backward by another tier than forward's, as the plan may choose."""
    case = Case(cell, T=9, B=10, IN=8, H=48, D=2, dtype=torch.float16, tier=first)
    p, want = on_gpu(case), expected(case, problem(case))
    saved = forward(ops, case, p)
    lstm = cell == "lstm"
    for second in TIERS:
        x, h0, c0, weights = backward(ops, replace(case, tier=second), p, saved)
        ratio, what = worst(case, [*saved[: 2 + lstm], x, h0, *([c0] if lstm else []), *weights], want)
        assert ratio <= 1, f"{second}: {what}"


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


def test_two_streams_at_once():
    """Two layers on two streams, both of the grid tier: each waits for its own flags alone."""
    case = Case("lstm", T=200, B=4, IN=16, H=256, dtype=torch.bfloat16, tier="grid")
    problems = [on_gpu(case, seed) for seed in (0, 1)]
    alone = [fused(ops, case, p) for p in problems]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    together = []
    for _ in range(5):
        for p, stream in zip(problems, streams, strict=True):
            with torch.cuda.stream(stream):
                together.append(fused(ops, case, p))
    torch.cuda.synchronize()
    for n, found in enumerate(together):
        for a, b in zip(found, alone[n % 2], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("tier", [*TIERS, "auto"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_empty_batch(cell, D, tier):
    """B = 0: nothing to launch, gradients of weights are zero."""
    case = Case(cell, B=0, D=D, dtype=torch.float32, tier=tier)
    ratio, what = worst(case, fused(ops, case, on_gpu(case)), expected(case, problem(case)))
    assert ratio == 0, what


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_every_time(cell, tier):
    """No result hangs on who came first: twice the same bits, in every tier."""
    case = Case(cell, T=20, B=32, IN=64, H=128, D=2, dtype=torch.bfloat16, tier=tier)
    p = on_gpu(case)
    for a, b in zip(fused(ops, case, p), fused(ops, case, p), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("cell", CELLS)
def test_backward_continues_the_cpus_forward(cell, save):
    """What is saved for backward is laid out the same on every device."""
    case = Case(cell, D=2, sizes=PACKED, save=save)
    p, want = problem(case), expected(case, problem(case))
    lstm = cell == "lstm"
    for first, second in (("cpu", DEVICE), (DEVICE, "cpu")):
        saved = tuple(t.to(second) for t in forward(ops, case, p.map(lambda t, d=first: t.to(d))))
        x, h0, c0, weights = backward(ops, case, p.map(lambda t, d=second: t.to(d)), saved)
        ratio, what = worst(case, [*saved[: 2 + lstm], x, h0, *([c0] if lstm else []), *weights], want)
        assert ratio <= 1, what


# Modules, against torch.nn


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


@pytest.mark.parametrize("tier", ["stepwise", "one_cta", "cluster", "grid"])
def test_tensorfloat_is_the_callers_choice(tier):
    """With the op's option products round to 10 bits, without it they do not, whatever cuda.matmul says."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    if tier == "cluster" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no thread block clusters")
    exact = Case("lstm", T=6, B=16, IN=256, H=64, dtype=torch.float32, tier="stepwise")
    coarse = replace(exact, tier=tier, tf32=True)
    p, want = on_gpu(exact), expected(exact, problem(exact))
    for matmul in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = matmul
        assert worst(exact, fused(ops, exact, p), want)[0] <= 1
        ratio, what = worst(coarse, fused(ops, coarse, p), want)
        assert ratio <= 1, what
        assert worst(exact, fused(ops, coarse, p), want)[0] > 1


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


# Streams, graphs, devices, memory


def test_current_stream():
    """Work goes to the current stream: its input is made there after a long wait that only it knows of."""
    case = Case("lstm", T=8, B=4, IN=16, H=32, dtype=torch.float32, D=2)
    p = on_gpu(case)
    want = fused(ops, case, p)
    late = p.map(torch.zeros_like)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for target, source in zip(inputs(late), inputs(p), strict=True):
            target.copy_(source)
        late.cotangents = p.cotangents
        got = fused(ops, case, late)
    stream.synchronize()
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tier", TIERS)
def test_no_synchronisation(cell, tier):
    """Not one wait for the device, packed sequences included."""
    case = Case(cell, D=2, sizes=PACKED, dtype=torch.bfloat16, save="recompute", tier=tier)
    p = on_gpu(case)
    fused(ops, case, p)  # cuBLAS may wait while it sets itself up
    torch.cuda.set_sync_debug_mode("error")
    try:
        fused(ops, case, p)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sizes", [None, PACKED])
@pytest.mark.parametrize(
    ("cell", "P", "tier"),
    [("lstm", 3, "stepwise"), *((cell, 0, tier) for cell in ("lstm", "gru", "rnn_tanh") for tier in TIERS)],
)
def test_cuda_graph(cell, P, tier, sizes):
    """Forward and backward captured once and replayed on other numbers."""
    case = Case(cell, P=P, D=2, sizes=sizes, dtype=torch.float16, tier=tier)
    p = on_gpu(case)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        fused(ops, case, p)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fused(ops, case, p)
    for seed in (1, 2):
        other = problem(case, seed)
        for target, source in zip(inputs(p), inputs(other), strict=True):
            target.copy_(source)
        graph.replay()
        want = fused(ops, case, p)
        for g, w in zip(captured, want, strict=True):
            assert torch.equal(g, w)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_other_device():
    """The tensors' device, not the current one."""
    case = Case("lstm", D=2, dtype=torch.float32)
    p, want = problem(case), expected(case, problem(case))
    got = fused(ops, case, p.map(lambda t: t.to("cuda:1")))
    assert {t.device.index for t in got} == {1}
    assert torch.cuda.current_device() == 0
    assert worst(case, got, want)[0] <= 1


def test_devices_must_agree():
    case = Case("lstm")
    p = problem(case)
    p.x = p.x.to(DEVICE)
    with pytest.raises(RuntimeError, match="expected the dtype and device of x"):
        forward(ops, case, p)
    p = on_gpu(case)
    p.x = p.x.cpu()
    with pytest.raises(RuntimeError, match="x: expected a CUDA tensor"):
        forward(ops, case, p)


def test_longer_than_65535_steps():
    """Where cuDNN gives up. tanh with small weights contracts: the end knows nothing of the start."""
    steps, tail = 70_000, 200
    case = Case("rnn_tanh", T=steps, B=2, IN=3, H=8, dtype=torch.float32)
    p = on_gpu(case)
    y, hn, *_ = forward(ops, case, p)
    weights = [w.cpu().double() for w in p.weights]
    end, _, _ = reference.layer(
        p.x[-tail:].cpu().double(), p.h0.cpu().double() * 0, None, weights, cell="rnn_tanh", bias=True
    )
    assert_close(y[-tail // 2 :].cpu(), end[-tail // 2 :], torch.float32, slack=2.0)
    assert torch.equal(hn[0], y[-1])


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 40 << 30,
    reason="needs 40 GB of GPU memory",
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_more_than_2_to_the_31_elements(cell):
    """Offsets are 64-bit: rows are independent, so those at the end can be run alone."""
    steps, batch, last = 280, 2048, 3
    case = Case(cell, T=steps, B=batch, IN=8, H=1024, dtype=torch.bfloat16)
    assert steps * batch * 4 * case.H > 2**31
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape, scale=1.0):
        wide = torch.rand(shape, generator=generator, device=DEVICE, dtype=torch.bfloat16) * 2 - 1
        return wide * scale

    G = reference.GATES[cell]
    weights = [
        draw(G * case.H, case.IN),
        draw(G * case.H, case.H, scale=1 / 32),
        draw(G * case.H),
        draw(G * case.H),
    ]
    x, h0 = draw(steps, batch, case.IN), draw(1, batch, case.H)
    c0 = draw(1, batch, case.H) if cell == "lstm" else None
    grad_y = draw(steps, batch, case.H)

    def run(rows: slice):
        c = None if c0 is None else c0[:, rows].contiguous()
        given = x[:, rows].contiguous(), h0[:, rows].contiguous(), c, weights, None, None, None
        y, _, _, gates, cells = ops.rnn_forward(*given, cell, True, 1)
        grad = grad_y[:, rows].contiguous()
        grad_x, *_ = ops.rnn_backward(grad, None, None, None, *given, y, gates, cells, cell, True, 1)
        return y, grad_x

    y, grad_x = run(slice(None))
    alone = run(slice(batch - last, batch))
    assert_close(y[:, -last:].cpu(), alone[0].cpu(), torch.bfloat16)
    assert_close(grad_x[:, -last:].cpu(), alone[1].cpu(), torch.bfloat16, gradient=True)
