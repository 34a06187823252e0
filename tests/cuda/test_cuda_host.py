"""What the host does around the kernels on a real GPU: streams, waits, graphs, devices."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DEVICE, MARKS, TIERS, forward_takes, inputs, on_gpu, ops
from layer_cases import CELLS, PACKED, Case, expected, forward, fused, names, problem, worst
from tolerances import worst_of

from fastrnn._ops.mode import OVERLAPS

pytestmark = MARKS


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


@pytest.mark.parametrize("tier", OVERLAPS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_product_beside_the_loop(cell, tier):
    """Two streams of which the second one waits for inputs that are made late, and the loop for it."""
    case = Case(cell, T=200, B=4, IN=256, H=64, dtype=torch.bfloat16, tier=tier)
    if not forward_takes(case):
        pytest.skip(f"{tier} cannot take it here")
    p = on_gpu(case)
    want = expected(case, problem(case))[: 2 + (cell == "lstm")]
    late = p.map(torch.zeros_like)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for _ in range(5):
        with torch.cuda.stream(stream):
            for target in inputs(late):
                target.fill_(torch.nan)
            torch.cuda._sleep(20_000_000)
            for target, source in zip(inputs(late), inputs(p), strict=True):
                target.copy_(source)
            got = forward(ops, case, late)
        stream.synchronize()
        given = names(case)[: len(want)], list(got[: len(want)]), want
        ratio, what = worst_of(*given, case.tolerance, case.dtype)
        assert ratio <= 1, what


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
