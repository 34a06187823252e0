"""The CUDA ops with each tier by name, on the emulator: the host code around the persistent kernels.

The kernels themselves, over more shapes and schedules, are tested beside their own entry points; here it is
the way from tensors to them and back, the choice among tiers, and TensorFloat-32.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from layer_cases import (
    ALL,
    CELLS,
    LENGTHS,
    PACKED,
    SAVES,
    Case,
    backward,
    check,
    expected,
    forward,
    fused,
    problem,
    worst,
)

H100, SHARED = (90, 132), 227 << 10


@pytest.fixture(scope="module")
def ops(ops):
    ops.device(*H100, SHARED)
    yield ops
    ops.device(0, 0, 0)


def cases() -> list[Case]:
    """Tiers, cells, types, directions; padded, packed and masked; saved and recomputed gates; odd sizes."""
    found = []
    types = ((torch.bfloat16, False), (torch.float16, False), (torch.float32, True))
    for n, cell in enumerate(CELLS):
        for tier in ("one_cta", "cluster", "grid"):
            for k, (dtype, tf32) in enumerate(types):
                plain = Case(cell, T=5, B=9, IN=6, H=21, dtype=dtype, tier=tier, tf32=tf32)
                found.append(replace(plain, D=2, save="recompute" if (n + k) % 2 else "gates"))
                found.append(replace(plain, D=1 + k % 2, sizes=PACKED, bias=cell == "rnn_relu" or k != 1))
                ragged = replace(plain, T=4, D=2 - k % 2, lengths=LENGTHS if k < 2 else None, reset="some")
                found.append(replace(ragged, save="gates" if (n + k) % 2 else "recompute", strided=k == 1))
            found.append(replace(plain, D=2, lengths=(0,), dtype=torch.float16, tf32=False))
            # Wider than the kernels project themselves.
            found.append(replace(plain, IN=66, D=2, sizes=PACKED))
            found.append(
                Case(
                    cell, T=2, B=1, IN=1, H=8, dtype=torch.bfloat16, tier=tier, strided=True, save="recompute"
                )
            )
    return found


@pytest.mark.parametrize("case", cases(), ids=str)
def test_tier(ops, case):
    """Outputs and every gradient against the reference; the forced tier is the one that can run it."""
    ops.configure(len(str(case)))
    check(ops, case, ops.guarded if not case.strided else lambda t: t)


@pytest.mark.parametrize("first", ["one_cta", "cluster", "grid", "stepwise"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_tiers_mix(ops, cell, first):
    """Backward by another tier than forward's: all save the same, so the plan may choose them apart."""
    case = Case(cell, T=4, B=5, IN=3, H=18, D=2, dtype=torch.bfloat16, tier=first)
    p, want = problem(case), expected(case, problem(case))
    saved = forward(ops, case, p)
    for second in ("one_cta", "cluster", "grid", "stepwise"):
        x, h0, c0, weights = backward(ops, replace(case, tier=second), p, saved)
        lstm = cell == "lstm"
        got = [*saved[: 2 + lstm], x, h0, *([c0] if lstm else []), *weights]
        ratio, what = worst(case, got, want)
        assert ratio <= 1, f"{second}: {what}"


@pytest.mark.parametrize("tier", ["one_cta", "cluster", "grid"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_save_modes_agree(ops, cell, tier):
    """Inference saves nothing, and its results are training's."""
    case = Case(cell, T=4, B=3, IN=3, H=18, dtype=torch.bfloat16, tier=tier)
    p = problem(case)
    runs = {save: forward(ops, case, p, save) for save in SAVES}
    for save in ("gates", "recompute"):
        for a, b in zip(runs["nothing"][:3], runs[save][:3], strict=True):
            assert torch.equal(a, b)
    assert [t.shape for t in runs["nothing"][3:]] == [(0,), (0,)]


@pytest.mark.parametrize("tier", ["one_cta", "cluster", "grid", "stepwise"])
def test_absent_gradients_and_needs(ops, tier):
    """Gradients that are not given count as zero; those that are not asked for come back empty."""
    case = Case("lstm", T=3, B=2, IN=3, H=9, dtype=torch.bfloat16, tier=tier)
    p = problem(case)
    saved = forward(ops, case, p)
    p.cotangents = [p.cotangents[0], *(torch.zeros_like(g) for g in p.cotangents[1:])]
    y, _, _, gates, cells = saved
    rest = (p.x, p.h0, p.c0, p.weights, *p.rows, y, gates, cells, "lstm", True)
    got = ops.rnn_backward(p.cotangents[0], None, None, None, *rest, ALL + case.mode)
    want = backward(ops, case, p, saved)
    for a, b in zip((*got[:3], *got[3]), (*want[:3], *want[3]), strict=True):
        assert torch.equal(a, b)
    none = ops.rnn_backward(p.cotangents[0], None, None, None, *rest, case.mode)
    assert [t.numel() for t in none[:3]] == [0, 0, 0]
    assert none[3] == []


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tier", ["one_cta", "cluster", "grid", "stepwise"])
def test_empty_batch(ops, cell, tier):
    """No rows: nothing is launched, weights get gradients of zero, whatever the tier."""
    case = Case(cell, B=0, D=2, dtype=torch.float32, tier=tier)
    ratio, what = worst(case, fused(ops, case, problem(case)), expected(case, problem(case)))
    assert ratio == 0, what


def test_a_tier_that_cannot_is_one_error(ops):
    """The tier, the pass and the reason."""
    case = Case("lstm", H=7, dtype=torch.float64, tier="grid")
    with pytest.raises(RuntimeError, match="tier 'grid' cannot run this layer's forward pass: float64"):
        forward(ops, case, problem(case))
    case = Case("lstm", P=2, dtype=torch.bfloat16, tier="one_cta")
    with pytest.raises(RuntimeError, match="forward pass: a projection"):
        forward(ops, case, problem(case))
    case = Case("gru", H=3000, IN=1, B=1, T=1, dtype=torch.bfloat16, tier="one_cta")
    with pytest.raises(RuntimeError, match="forward pass: the recurrent weights do not fit"):
        forward(ops, case, problem(case))
    case = Case("lstm", dtype=torch.float32, tier="cluster")
    with pytest.raises(
        RuntimeError, match="tier 'cluster' cannot run this layer's forward pass: float32 without"
    ):
        forward(ops, case, problem(case))
    case = Case("lstm")
    p = problem(case)
    for mode in (3, -1, 352, 512):
        with pytest.raises(RuntimeError, match="mode: expected what to save"):
            ops.rnn_forward(p.x, p.h0, p.c0, p.weights, *p.rows, "lstm", True, mode)


@pytest.mark.parametrize("tier", ["one_cta", "stepwise"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_tensorfloat_is_the_callers_choice(ops, cell, tier):
    """With the option products round their factors, without it they do not: 10 bits against 23."""
    exact = Case(cell, T=4, B=3, IN=24, H=24, dtype=torch.float32, tier="stepwise")
    coarse = replace(exact, tier=tier, tf32=True)
    p, want = problem(exact), expected(exact, problem(exact))
    assert worst(exact, fused(ops, exact, p), want)[0] <= 1
    ratio, what = worst(coarse, fused(ops, coarse, p), want)
    assert ratio <= 1, what
    assert worst(exact, fused(ops, coarse, p), want)[0] > 10


def test_products_of_any_strides(ops):
    """Float32 products pass their strides to BLAS: transposed and expanded weights, a single row."""
    case = Case("lstm", T=3, B=4, IN=5, H=6, dtype=torch.float32, D=2)
    p = problem(case)
    want = fused(ops, case, p)
    transposed = p.map(lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() == 2 else t)
    for a, b in zip(fused(ops, case, transposed), want, strict=True):
        assert torch.equal(a, b)
    for IN, H, B, T in ((1, 1, 1, 1), (1, 3, 1, 2), (3, 1, 2, 1)):
        check(ops, Case("gru", T=T, B=B, IN=IN, H=H, dtype=torch.float32))
    p.weights[0] = p.weights[0][:, :1].expand_as(p.weights[0])
    assert worst(case, fused(ops, case, p), expected(case, p))[0] <= 1
