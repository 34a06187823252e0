"""The operators as such: what torch asks of an operator, bad arguments, the plan, and what was compiled."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import layer_cases
import pytest
import torch
from layer_cases import ALL, CELLS, PACKED, Case, Problem, problem
from torch.library import opcheck

from fastrnn import _C, _ops

ROOT = Path(__file__).parents[1]
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


# ---- what torch asks of an operator: schema, fake tensors, dynamic shapes --------------------------------

SAMPLES = [
    Case("lstm", dtype=F32),
    Case("lstm", P=3, D=2, sizes=PACKED, save="recompute"),
    Case("lstm", dtype=BF16, bias=False, D=2),
    Case("lstm", 1, 0, 3, 5, dtype=F32),
    Case("gru", D=2, strided=True),
    Case("gru", dtype=F16, sizes=PACKED, save="recompute"),
    Case("rnn_tanh", dtype=F32, bias=False),
    Case("rnn_relu", D=2, save="nothing"),
]


def _forward_arguments(case: Case, p: Problem) -> tuple:
    save = layer_cases.SAVES[case.save]
    return p.x, p.h0, p.c0, p.weights, p.batch_sizes, case.cell, case.bias, save


def _backward_arguments(case: Case, p: Problem, needs: int = ALL) -> tuple:
    y, _, _, gates, cells = layer_cases.forward(torch.ops.fastrnn, case, p)
    inputs = p.x, p.h0, p.c0, p.weights, p.batch_sizes
    return *(*p.cotangents, None)[:3], *inputs, y, gates, cells, case.cell, case.bias, needs


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_opcheck_forward(case):
    opcheck(_ops.forward, _forward_arguments(case, problem(case)))


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_opcheck_backward(case):
    opcheck(_ops.backward, _backward_arguments(case, problem(case)))


@pytest.mark.parametrize("needs", range(16))
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_opcheck_what_is_needed(cell, needs):
    """What is not asked for comes back empty, in the fake version too."""
    case = Case(cell, D=2)
    arguments = _backward_arguments(case, problem(case), needs)
    opcheck(_ops.backward, arguments, test_utils=("test_schema", "test_faketensor"))
    x, h0, c0, weights = _ops.backward(*arguments)
    assert (x.numel() > 0) == bool(needs & 1)
    assert (h0.numel() > 0) == bool(needs & 2)
    assert (c0.numel() > 0) == (bool(needs & 4) and cell == "lstm")
    assert bool(weights) == bool(needs & 8)


def test_opcheck_missing_gradients():
    case = Case("lstm")
    arguments = _backward_arguments(case, problem(case))
    for kept in range(3):
        given = [g if i == kept else None for i, g in enumerate(arguments[:3])]
        opcheck(_ops.backward, (*given, *arguments[3:]), test_utils=("test_schema", "test_faketensor"))


# ---- bad arguments: one error that names the argument ----------------------------------------------------

CASE = Case("lstm", T=4, B=3, IN=5, H=7, dtype=F32)
ROWS = sum(PACKED)


def _arguments(case: Case = CASE, **changed) -> dict:
    p = problem(case)
    arguments = dict(
        zip(
            ("x", "h0", "c0", "weights", "batch_sizes", "cell", "bias", "save"),
            _forward_arguments(case, p),
            strict=True,
        )
    )
    assert changed.keys() <= arguments.keys()
    return {**arguments, **changed}


def _weights(index: int, value, case: Case = CASE) -> list:
    """The weights of a case with another one at `index`; None takes it away."""
    weights = problem(case).weights
    weights[index : index + 1] = [] if value is None else [value]
    return weights


def zeros(*shape, dtype=F32, **options):
    return torch.zeros(shape, dtype=dtype, **options)


PROJECTED = replace(CASE, P=3)
TWO = replace(CASE, D=2)
GRU = replace(CASE, cell="gru")
RAGGED = replace(CASE, sizes=PACKED)


def _packed(sizes, rows: int = ROWS):
    sizes = torch.tensor(sizes) if isinstance(sizes, (list, tuple)) else sizes
    return _arguments(RAGGED, batch_sizes=sizes, x=zeros(rows, 5))


# Arguments, and what the message has to contain: the argument's name first.
BAD = {
    "x 1-D": (_arguments(x=zeros(5)), "x: expected shape"),
    "x 2-D": (_arguments(x=zeros(4, 5)), "x: expected shape"),
    "x 4-D": (_arguments(x=zeros(1, 4, 3, 5)), "x: expected shape"),
    "x 3-D and packed": (_arguments(RAGGED, x=zeros(1, ROWS, 5)), "x: expected packed"),
    "no steps": (_arguments(x=zeros(0, 3, 5)), "x: expected a sequence length"),
    "features": (_arguments(x=zeros(4, 3, 6)), "weights[0] (w_ih): expected shape (28, 6)"),
    "rows": (_arguments(x=zeros(4, 2, 5)), "h0: expected shape (1, 2, 7)"),
    "integers": (_arguments(x=zeros(4, 3, 5, dtype=torch.int64)), "x: expected dtype"),
    "bools": (_arguments(x=zeros(4, 3, 5, dtype=torch.bool)), "x: expected dtype"),
    "complex": (_arguments(x=zeros(4, 3, 5, dtype=torch.complex64)), "x: expected dtype"),
    "x in float64": (_arguments(x=zeros(4, 3, 5, dtype=F64)), "weights[0] (w_ih): expected the dtype"),
    "h0 2-D": (_arguments(h0=zeros(3, 7)), "h0: expected shape"),
    "h0 4-D": (_arguments(h0=zeros(1, 1, 3, 7)), "h0: expected shape"),
    "h0 rows": (_arguments(h0=zeros(1, 4, 7)), "h0: expected shape (1, 3, 7), got (1, 4, 7)"),
    "h0 units": (_arguments(h0=zeros(1, 3, 8)), "h0: expected shape"),
    "h0 in float64": (_arguments(h0=zeros(1, 3, 7, dtype=F64)), "h0: expected the dtype"),
    "no directions": (_arguments(h0=zeros(0, 3, 7)), "h0: expected 1 or 2 directions"),
    "three directions": (_arguments(h0=zeros(3, 3, 7)), "h0: expected 1 or 2 directions"),
    "h0 as large as c0": (_arguments(PROJECTED, h0=zeros(1, 3, 7)), "h0: expected shape (1, 3, 3)"),
    "no c0": (_arguments(c0=None), "c0: expected a tensor"),
    "c0 of a GRU": (_arguments(GRU, c0=zeros(1, 3, 7)), "c0: expected none"),
    "c0 rows": (_arguments(c0=zeros(1, 2, 7)), "c0: expected shape (1, 3, 7)"),
    "c0 as small as h0": (_arguments(PROJECTED, c0=zeros(1, 3, 3)), "c0: expected shape (1, 3, 7)"),
    "c0 in half": (_arguments(c0=zeros(1, 3, 7, dtype=F16)), "c0: expected the dtype"),
    "no weights": (_arguments(weights=[]), "weights: expected"),
    "one weight": (_arguments(weights=[zeros(28, 5)]), "weights: expected 4 tensors a direction"),
    "a weight less": (_arguments(weights=_weights(3, None)), "weights: expected 4 tensors a direction"),
    "two weights more": (
        _arguments(weights=[*problem(PROJECTED).weights, zeros(28)]),
        "weights: expected 4 tensors a direction",
    ),
    "an odd number for two directions": (
        _arguments(TWO, weights=_weights(7, None, TWO)),
        "weights: expected the same number",
    ),
    "a projected GRU": (
        _arguments(GRU, weights=[*problem(GRU).weights, zeros(3, 7)]),
        "weights: expected 4 tensors a direction",
    ),
    "biases where none belong": (_arguments(bias=False), "weights: expected 2 tensors"),
    "no biases": (_arguments(weights=problem(CASE).weights[:2]), "weights: expected 4 tensors"),
    "w_ih 1-D": (_arguments(weights=_weights(0, zeros(28))), "weights[0] (w_ih)"),
    "w_ih not in gates": (_arguments(weights=_weights(0, zeros(27, 5))), "weights[0] (w_ih)"),
    "w_ih empty": (_arguments(weights=_weights(0, zeros(0, 5))), "weights[0] (w_ih)"),
    "w_ih of other units": (_arguments(weights=_weights(0, zeros(32, 5))), "weights[1] (w_hh)"),
    "w_hh transposed": (_arguments(weights=_weights(1, zeros(7, 28))), "weights[1] (w_hh)"),
    "w_hh in float64": (_arguments(weights=_weights(1, zeros(28, 7, dtype=F64))), "weights[1] (w_hh)"),
    "b_ih 2-D": (_arguments(weights=_weights(2, zeros(28, 1))), "weights[2] (b_ih)"),
    "b_hh short": (_arguments(weights=_weights(3, zeros(7))), "weights[3] (b_hh)"),
    "reverse w_hh": (_arguments(TWO, weights=_weights(5, zeros(28, 8), TWO)), "weights[5] (w_hh)"),
    "reverse b_hh in half": (
        _arguments(TWO, weights=_weights(7, zeros(28, dtype=F16), TWO)),
        "weights[7] (b_hh)",
    ),
    "w_hr 1-D": (_arguments(PROJECTED, weights=_weights(4, zeros(3), PROJECTED)), "weights[4] (w_hr)"),
    "w_hr transposed": (_arguments(PROJECTED, weights=_weights(4, zeros(7, 3), PROJECTED)), "weights["),
    "w_hr empty": (_arguments(PROJECTED, weights=_weights(4, zeros(0, 7), PROJECTED)), "weights[4] (w_hr)"),
    "rising lengths": (_packed((1, 2, 3), 6), "batch_sizes: expected positive, non-increasing"),
    "a zero": (_packed((3, 0)), "batch_sizes: expected positive"),
    "a zero alone": (_packed((0,), 0), "batch_sizes: expected positive"),
    "a negative number": (_packed((5, -1)), "batch_sizes: expected positive"),
    "the smallest number": (_packed((5, -(2**63))), "batch_sizes: expected positive"),
    "too few rows": (_packed(PACKED, ROWS - 1), "batch_sizes: expected a sum of"),
    "too many rows": (_packed(PACKED, ROWS + 1), "batch_sizes: expected a sum of"),
    "rows for another batch": (_packed((4, 4, 4)), "batch_sizes: expected a sum of"),
    "no sizes": (_packed(torch.zeros(0, dtype=torch.int64), 0), "batch_sizes: expected at least one"),
    "sizes 2-D": (_packed(torch.tensor([PACKED])), "batch_sizes: expected a 1-D int64"),
    "sizes 0-D": (_packed(torch.tensor(ROWS)), "batch_sizes: expected a 1-D int64"),
    "int32 sizes": (_packed(torch.tensor(PACKED, dtype=torch.int32)), "batch_sizes: expected a 1-D int64"),
    "NaN sizes": (_packed(torch.full((6,), float("nan"))), "batch_sizes: expected a 1-D int64"),
    "an unknown cell": (_arguments(cell="LSTM"), "cell: expected 'lstm'"),
    "no cell": (_arguments(cell=""), "cell: expected 'lstm'"),
    "another cell": (_arguments(cell="rnn_tanh", c0=None), "weights[1] (w_hh)"),
    "save -1": (_arguments(save=-1), "mode: expected 0, 1 or 2"),
    "save 3": (_arguments(save=3), "mode: expected 0, 1 or 2"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments(what):
    arguments, message = BAD[what]
    with pytest.raises(RuntimeError) as caught:
        _ops.forward(*arguments.values())
    assert message in str(caught.value)


def test_sizes_beyond_any_memory():
    """Sums and products that do not fit 64 bits, or any memory: an error, no crash."""
    rows = 2**60
    state = zeros(1, 1, 7).expand(1, rows, 7)
    wraps_to_zero = torch.full((16,), rows)  # 2^64
    with pytest.raises(RuntimeError, match="batch_sizes: expected a sum of 0"):
        _ops.forward(
            *_arguments(RAGGED, x=zeros(0, 5), batch_sizes=wraps_to_zero, h0=state, c0=state).values()
        )
    wide = _arguments(x=zeros(1, 1, 5).expand(4, 2**58, 5), h0=state[:, : 2**58], c0=state[:, : 2**58])
    long = _arguments(x=zeros(1, 3, 5).expand(2**59, 3, 5))
    for arguments in (wide, long):
        with pytest.raises(RuntimeError):
            _ops.forward(*arguments.values())


NAMES = ("grad_y", "grad_hn", "grad_cn", "x", "h0", "c0", "weights", "batch_sizes")
NAMES += ("y", "gates", "cells", "cell", "bias", "needs")

BAD_BACKWARD = {
    "grad_y's shape": ({"grad_y": zeros(4, 3, 8)}, "grad_y: expected shape (4, 3, 7)"),
    "grad_y 2-D": ({"grad_y": zeros(12, 7)}, "grad_y: expected shape"),
    "grad_y's dtype": ({"grad_y": zeros(4, 3, 7, dtype=F64)}, "grad_y: expected the dtype"),
    "grad_hn's shape": ({"grad_hn": zeros(2, 3, 7)}, "grad_hn: expected shape (1, 3, 7)"),
    "grad_hn's dtype": ({"grad_hn": zeros(1, 3, 7, dtype=F16)}, "grad_hn: expected the dtype"),
    "grad_cn's shape": ({"grad_cn": zeros(1, 3)}, "grad_cn: expected shape (1, 3, 7)"),
    "y's shape": ({"y": zeros(4, 3, 14)}, "y: expected shape"),
    "y's dtype": ({"y": zeros(4, 3, 7, dtype=F64)}, "y: expected the dtype"),
    "y transposed": ({"y": zeros(3, 4, 7).transpose(0, 1)}, "y: expected the contiguous tensor"),
    "gates' shape": ({"gates": zeros(1, 12, 7)}, "gates: expected shape (1, 12, 28)"),
    "gates' dtype": ({"gates": zeros(1, 12, 28, dtype=F64)}, "gates: expected the dtype"),
    "gates transposed": ({"gates": zeros(1, 28, 12).mT}, "gates: expected the contiguous tensor"),
    "nothing saved": ({"cells": zeros(0)}, "cells: expected shape (1, 12, 7), got (0)"),
    "cells' dtype": ({"cells": zeros(1, 12, 7, dtype=F64)}, "cells: expected the contiguous tensor"),
    "needs -1": ({"needs": -1}, "mode: expected 0 to 15"),
    "needs 16": ({"needs": 16}, "mode: expected 0 to 15"),
    "x's shape": ({"x": zeros(4, 3, 6)}, "weights[0] (w_ih): expected shape"),
    "no c0": ({"c0": None}, "c0: expected a tensor"),
    "lengths": (
        {"batch_sizes": torch.tensor([3, 4, 5]), "x": zeros(12, 5)},
        "batch_sizes: expected positive",
    ),
    "an unknown cell": ({"cell": "mgu"}, "cell: expected 'lstm'"),
}


@pytest.mark.parametrize("what", BAD_BACKWARD)
def test_bad_arguments_of_backward(what):
    changed, message = BAD_BACKWARD[what]
    arguments = dict(zip(NAMES, _backward_arguments(CASE, problem(CASE)), strict=True))
    with pytest.raises(RuntimeError) as caught:
        _ops.backward(*{**arguments, **changed}.values())
    assert message in str(caught.value)


def test_unknown_instruction_set():
    before = _ops.cpu_isa()
    with pytest.raises(RuntimeError, match=r"name: expected one of .*baseline.*, got 'sse9'"):
        _ops.set_cpu_isa("sse9")
    assert _ops.cpu_isa() == before
    assert before in _ops.available_cpu_isas()
    assert _ops.available_cpu_isas()[-1] == "baseline"


# ---- the plan, a pure function ---------------------------------------------------------------------------


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
        for vector_bytes in (16, 32, 64):
            for T, B, H in ((1, 1, 1), (1, 1, 1024), (100, 1, 33), (20, 5, 512), (50, 64, 256), (9, 1000, 7)):
                found = plan(
                    cell, T, B, 10, H, directions=directions, dtype=dtype, threads=threads,
                    vector_bytes=vector_bytes,
                )  # fmt: skip
                groups = [found[f"{k}_groups"] for k in ("direction", "batch", "unit")]
                assert min(groups) >= 1
                assert groups[0] * groups[1] * groups[2] <= threads
                assert groups[0] <= directions
                assert groups[1] <= B
                lanes = vector_bytes // (8 if dtype == "float64" else 4)
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


@pytest.mark.parametrize("vector_bytes", [-16, 0, 4, 7])
def test_plan_of_registers_too_small(vector_bytes):
    """In a process of its own: this once was a division by zero."""
    code = f"import _C; _C.plan('cpu', 'gru', 9, 9, 9, 9, dtype='float64', vector_bytes={vector_bytes})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(_C.__file__).parent, capture_output=True, text=True
    )
    assert "ValueError: vector_bytes: " in done.stderr, f"exit status {done.returncode}: {done.stderr}"


def test_plan_of_no_rows():
    assert plan(B=0)["flops"] == 0


def test_build_info():
    info = _ops.build_info()
    assert set(info) == {"version", "compiler", "torch", "cuda_archs", "cuda_compiler"}
    assert info["compiler"].startswith(("gcc", "clang"))


# ---- what was compiled -----------------------------------------------------------------------------------


def test_kernels_export_their_table_alone():
    """No weak symbol: an inline function compiled with AVX-512 here could take the place of everybody's copy
    at link time, and then crash a machine without it."""
    objects = sorted(ROOT.glob("build/temp*/libfastrnn_cpu/csrc/cpu/isa_*.o"))
    if not objects:
        pytest.skip("an installed package: the object files are elsewhere")
    for path in objects:
        lines = subprocess.check_output(["nm", "-C", path], text=True).splitlines()
        symbols = [line.split(maxsplit=2)[1:] if line[0] != " " else line.split(maxsplit=1) for line in lines]
        assert not [name for kind, name in symbols if kind in "WwVvui"], path
        exported = [name for kind, name in symbols if kind.isupper() and kind != "U"]
        table = path.stem.removeprefix("isa_").capitalize()  # AVX-512 has two, with and without bfloat16
        allowed = {f"fastrnn::k{table}Kernels", f"fastrnn::k{table}Bf16Kernels"}
        assert set(exported) <= allowed, path  # none on another processor


def _compile(compiler: str, output: Path, *flags: str) -> str:
    """What the compiler has to say about the baseline kernels."""
    source = ROOT / "csrc" / "cpu" / "isa_baseline.cpp"
    command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", *flags, source, "-o", output]
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_baseline_kernels_need_nothing_of_x86(tmp_path):
    """They compile for aarch64: with a cross compiler where there is one, else here in its name.

    In its name: without the macro of x86-64 and with that of aarch64, no x86 intrinsic can be meant.
    """
    cross = shutil.which("aarch64-linux-gnu-g++")
    if cross:
        assert _compile(cross, tmp_path / "kernels.o", "-c", "-O1") == ""
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip("an installed package on a machine without a compiler")
    if platform.machine() == "aarch64":
        assert _compile(compiler, tmp_path / "kernels.o", "-c", "-O0") == ""
        return
    (tmp_path / "gnu").mkdir()
    (tmp_path / "gnu" / "stubs-32.h").touch()  # which glibc asks for on what seems no x86-64
    flags = ("-S", "-O0", "-U__x86_64__", "-D__aarch64__", f"-I{tmp_path}")
    assert _compile(compiler, tmp_path / "kernels.s", *flags) == ""
