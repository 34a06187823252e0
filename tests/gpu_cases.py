"""Cases of layer_cases.py on a real GPU, for the tests in cuda/ that need one."""

from __future__ import annotations

import pytest
import torch
from layer_cases import Case, problem, spread

from fastrnn import _C
from fastrnn._plan import gpus

DEVICE = "cuda"
ops = torch.ops.fastrnn
TIERS = ("one_cta", "cluster", "grid", "stepwise_graph", "stepwise")

#: Marks of such a file. ieee: conftest.py's.
MARKS = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.usefixtures("ieee"),
]


def on_gpu(case: Case, seed: int = 0):
    moved = problem(case, seed).map(lambda t: t.to(DEVICE))
    return moved.map(spread) if case.strided else moved  # moving closes gaps


def inputs(p):
    return [t for t in (p.x, p.h0, p.c0, *p.weights) if t is not None]


def takes(case: Case) -> bool:
    """Whether the case's tier can run both passes on this GPU, as the plan says."""
    plan = planned(case)
    return plan["possible"] and plan["backward"]["possible"]


def forward_takes(case: Case) -> bool:
    return planned(case)["possible"]


def planned(case: Case) -> dict:
    steps, rows = (len(case.sizes), case.sizes[0]) if case.sizes else (case.T, case.B)
    shape = {"T": steps, "B": rows, "I": case.IN, "H": case.H, "P": case.P, "directions": case.D}
    dtype = str(case.dtype).removeprefix("torch.")
    gpu = gpus.find().properties()
    return _C.plan(
        device="cuda",
        cell=case.cell,
        **shape,
        dtype=dtype,
        training=True,
        gpu=gpu,
        tf32=case.tf32,
        tier=case.tier,
    )
