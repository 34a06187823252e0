"""The plan: which kernel runs and how it is cut up, a pure function of sizes and device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layer_cases import CELLS

from fastrnn import _C
from fastrnn._ops import library
from fastrnn.proof import machine


def plan(cell="lstm", T=50, B=32, I=64, H=128, device="cpu", **options):  # noqa: E741 (the size's name)
    return _C.plan(device, cell, T, B, I, H, **options)


def test_plan_is_pure():
    assert plan(threads=4) == plan(threads=4)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7, 8, 16, 64])
@pytest.mark.parametrize("directions", [1, 2])
def test_plan_uses_no_more_threads_than_there_are(cell, threads, directions):
    """And no group is left without rows or units."""
    for dtype in ("float32", "float64", "bfloat16"):
        for lanes in (2, 4, 8, 16):
            for T, B, H in ((1, 1, 1), (1, 1, 1024), (100, 1, 33), (20, 5, 512), (50, 64, 256), (9, 1000, 7)):
                found = plan(
                    cell, T, B, 10, H, directions=directions, dtype=dtype, threads=threads,
                    lanes=lanes,
                )  # fmt: skip
                groups = [found[f"{k}_groups"] for k in ("direction", "batch", "unit")]
                assert min(groups) >= 1
                assert groups[0] * groups[1] * groups[2] <= threads
                assert groups[0] <= directions
                assert groups[1] <= B
                assert groups[2] <= -(-H // lanes)
                assert 1 <= found["forward_chunk"] <= T
                assert 1 <= found["backward_chunk"] <= T
                assert found["reason"]


def test_plan_of_little_work_is_one_thread():
    assert plan(T=1, B=1, I=8, H=8, threads=8)["reason"] == "one thread"


def test_plan_runs_directions_at_the_same_time():
    assert plan(directions=2, threads=2)["direction_groups"] == 2
    assert plan(directions=2, threads=1)["direction_groups"] == 1
    assert plan(directions=1, threads=8)["direction_groups"] == 1


def test_plan_splits_rows_or_units():
    many_rows, one_row = plan(B=256, H=64, threads=2), plan(B=1, H=1024, threads=2)
    assert (many_rows["batch_groups"], many_rows["unit_groups"]) == (2, 1)
    assert (one_row["batch_groups"], one_row["unit_groups"]) == (1, 2)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_plan_splits_many_rows_of_weights_that_fill_a_cache(cell):
    """Where each panel of weights serves several tiles of rows, reading all of them costs less than a meeting
    every step."""
    wide = {"T": 100, "I": 256, "H": 256, "threads": 2, "l2_bytes": 1 << 20}
    assert plan(cell, B=32, **wide)["batch_groups"] == 2
    assert plan(cell, B=20, **wide)["batch_groups"] == 1
    assert plan(cell, B=64, **wide | {"H": 512})["batch_groups"] == 1


def test_plan_weighs_a_step_against_a_meeting():
    """Threads that share the units meet every step: they are worth it where a step is long, whatever the
    number of steps. They once split any layer of some work in all: 300 steps of 32 units took three times as
    long on two threads as on one."""
    for T in (30, 300, 30_000):
        for count in (2, 4, 64):
            small = plan(T=T, B=1, I=32, H=32, threads=count)
            assert (small["unit_groups"], small["reason"]) == (1, "one thread")
        assert plan(T=T, B=1, I=512, H=512, threads=2)["unit_groups"] == 2
    many = plan(T=300, B=1, I=256, H=256, threads=64)["unit_groups"]
    assert 2 <= many < 16, "a meeting of many takes longer"
    assert plan(T=300, B=1, I=32, H=32, threads=2, meeting_ns=0)["unit_groups"] == 2


def test_plan_splits_rows_of_little_work_a_step():
    """Threads that share the batch never meet: the whole call's work decides."""
    assert plan(T=1000, B=24, I=16, H=16, threads=2)["batch_groups"] == 2
    assert plan(T=3, B=24, I=16, H=16, threads=2)["reason"] == "one thread"
    assert plan(T=3, B=24, I=16, H=16, threads=2, region_ns=0)["batch_groups"] == 2


def test_plan_of_two_directions_of_little_work():
    """Two directions are worth a second thread where what it takes to wake one is less than their work."""
    assert plan(T=5, B=1, I=8, H=8, directions=2, threads=2)["reason"] == "one thread"
    large = plan(T=50, B=1, I=64, H=128, directions=2, threads=2)
    assert (large["direction_groups"], large["unit_groups"]) == (2, 1)


@pytest.mark.parametrize("cell", CELLS)
def test_plan_follows_the_caches(cell):
    """The cache of a core decides where the batch is split and how long a chunk is: measured on processors
    with 1 MB, but others have from 256 KB to 16 MB."""
    chunks = [plan(cell, T=10_000, B=8, H=64, l2_bytes=n << 10)["forward_chunk"] for n in (256, 1024, 4096)]
    assert chunks == sorted(chunks)
    assert len(set(chunks)) == 3
    of_rows = {n: plan(cell, B=96, I=256, H=256, threads=2, l2_bytes=n << 10) for n in (256, 4096)}
    assert of_rows[4096]["batch_groups"] == 2
    if cell in ("lstm", "gru"):
        assert of_rows[256]["batch_groups"] == 1, "the weights are larger: each core reads a part of them"
    for absurd in (1, 1 << 60):
        assert 1 <= plan(cell, l2_bytes=absurd, l3_bytes=absurd)["forward_chunk"] <= 50


def test_the_machine_that_is_planned_for():
    """Kernels plan for this machine's caches; a test may say otherwise, and bad numbers are refused."""
    known = library.cpu_machine(torch.float32)
    units = {"K": 10, "M": 20}
    for level, size in machine.caches().items():
        if level in ("L2", "L3") and size[-1] in units:
            assert known[f"{level.lower()}_bytes"] == int(size[:-1]) << units[size[-1]]
    try:
        library.set_cpu_machine(l2_bytes=123, l3_bytes=456)
        changed = library.cpu_machine(torch.float64)
        assert (changed["l2_bytes"], changed["l3_bytes"]) == (123, 456)
        assert changed["meeting_ns"] == known["meeting_ns"]
        for bad in ({"l2_bytes": 0}, {"l3_bytes": -1}, {"meeting_ns": -1}, {"region_ns": 1 << 40}):
            with pytest.raises(RuntimeError, match=f"{next(iter(bad))}: expected"):
                library.set_cpu_machine(**bad)
        with pytest.raises(TypeError, match="l4_bytes"):
            library.set_cpu_machine(l4_bytes=1)
    finally:
        library.set_cpu_machine(**{k: known[k] for k in ("l2_bytes", "l3_bytes", "meeting_ns", "region_ns")})


def test_plan_reads_weights_in_place_for_a_step_of_few_rows():
    assert plan(T=1, B=1)["kernel"] == "direct"
    assert plan(T=1, B=1)["packed_weights"] is False
    assert plan(T=100, B=1)["kernel"] == "packed"
    assert plan(T=1, B=100)["kernel"] == "packed"
    # For more steps of one row where packed weights would not be nearer than those of the layer.
    wide = {"B": 1, "H": 600, "l2_bytes": 1 << 20}
    assert [plan(T=T, **wide)["kernel"] for T in (10, 16, 17)] == ["direct", "direct", "packed"]
    assert [plan(T=T, **wide | {"H": 250})["kernel"] for T in (10, 11)] == ["direct", "packed"]
    assert plan(T=8, **wide | {"B": 2})["kernel"] == "packed"


def test_plan_cost():
    """Flops and bytes are those of the equations."""
    T, B, IN, H, P = 10, 3, 20, 30, 5
    found = _C.plan("cpu", "lstm", T, B, IN, H, P, 2, training=True, dtype="bfloat16")
    product = 2 * 2 * T * B * (4 * H * (IN + P) + P * H)
    assert found["flops"] == 3 * product
    assert found["weight_bytes"] == 2 * 2 * (4 * H * (IN + P) + P * H)
    assert found["saved_bytes_per_step"] == 2 * B * (2 * 4 * H + 4 * H)
    assert found["saved_bytes_per_step_recompute"] == 2 * B * 4 * H
    inference = _C.plan("cpu", "gru", T, B, IN, H)
    assert inference["flops"] == 2 * T * B * 3 * H * (IN + H)
    assert inference["saved_bytes_per_step"] == 0


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"device": "tpu"}, "device"),
        ({"cell": "mgu"}, "cell"),
        ({"dtype": "int8"}, "dtype"),
        ({"T": 0}, "T"),
        ({"B": -1}, "B"),
        ({"I": 0}, "I"),
        ({"H": 0}, "H"),
        ({"P": -1}, "P"),
        ({"cell": "gru", "P": 4}, "P"),
        ({"directions": 0}, "directions"),
        ({"directions": 3}, "directions"),
        ({"threads": 0}, "threads"),
        ({"l2_bytes": 0}, "l2_bytes"),
        ({"l3_bytes": 0}, "l3_bytes"),
        ({"meeting_ns": -1}, "meeting_ns"),
        ({"region_ns": -1}, "region_ns"),
    ],
)
def test_plan_of_bad_arguments(changed, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        plan(**changed)


@pytest.mark.parametrize("argument", ["lanes=0", "lanes=-4", "tile_rows=0"])
def test_plan_of_registers_too_small(argument):
    """In a process of its own: this once was a division by zero."""
    code = f"import _C; _C.plan('cpu', 'gru', 9, 9, 9, 9, dtype='float64', {argument})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(_C.__file__).parent, capture_output=True, text=True
    )
    assert f"ValueError: {argument.partition('=')[0]}: " in done.stderr, (
        f"exit status {done.returncode}: {done.stderr}"
    )


def test_plan_of_no_rows():
    assert plan(B=0)["flops"] == 0
