"""The CUDA kernels on a real GPU: against the float64 reference, by every tier.

What can be seen without one is in test_cuda_emulated.py and test_cuda_compile.py; modules and what the host
does around the kernels in test_cuda_modules.py and test_cuda_host.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import what_ran
from gpu_cases import DEVICE, MARKS, TIERS, on_gpu, ops, takes
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
    worst,
)
from tolerances import assert_close

from fastrnn import reference

pytestmark = MARKS


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
