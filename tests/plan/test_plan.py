"""The plan: which kernel runs and how it is cut up, a pure function of sizes and device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from layer_cases import CELLS

from fastrnn import _C


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


def test_plan_reads_weights_in_place_for_a_step_of_few_rows():
    assert plan(T=1, B=1)["kernel"] == "direct"
    assert plan(T=1, B=1)["packed_weights"] is False
    assert plan(T=100, B=1)["kernel"] == "packed"
    assert plan(T=1, B=100)["kernel"] == "packed"


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
