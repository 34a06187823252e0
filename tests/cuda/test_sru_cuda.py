"""The SRU's scan on a real GPU, against the float64 reference.

What can be seen without one is in test_sru_cuda_emulated.py and test_cuda_compile.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from layer_cases import DTYPES, spread
from sru_cases import Case, expected, fused, grid, problem, worst

import fastrnn  # noqa: F401  loads torch.ops.fastrnn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

OPS = torch.ops.fastrnn
FULL = Case(D=2, v=True, pad=True, drop=True, tanh=True)
LARGER = [
    replace(case, dtype=dtype)
    for dtype in DTYPES
    for case in (
        Case(L=130, B=16, O=1024),  # single values of half types
        Case(L=130, B=70, O=1024, skip="u"),  # pairs
        replace(FULL, L=61, B=40, O=514),
        Case(O=258, D=2, sizes=(40, *[33] * 50, 20, 20, 1), skip="u"),
    )
]


def on_gpu(case: Case):
    moved = problem(case).map(lambda t: t.cuda())
    return moved.map(spread) if case.strided else moved  # moving closes gaps


def check(case: Case) -> None:
    ratio, what = worst(case, fused(OPS, case, on_gpu(case)), expected(case, problem(case)))
    assert ratio <= 1, what


@pytest.mark.parametrize("case", [*grid(), *LARGER], ids=str)
def test_grid(case):
    """Outputs and every gradient."""
    check(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("L", [1, 3, 4, 5, 19, 20, 21, 23, 24, 25, 1000])
def test_lengths(dtype, L):
    """Around the steps of a group of copies, those on their way and those of the ring."""
    check(Case(L=L, B=2, O=3, dtype=dtype, pad=True))
    check(replace(FULL, L=L, B=64, O=1030, dtype=dtype, skip="u") if L < 1000 else Case(L=L, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_in_every_run(dtype):
    """Also on another stream, and from a captured graph."""
    case = replace(FULL, L=40, B=33, O=258, dtype=dtype)
    p = on_gpu(case)
    first = fused(OPS, case, p)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        second = fused(OPS, case, p)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        third = fused(OPS, case, p)
    graph.replay()
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
