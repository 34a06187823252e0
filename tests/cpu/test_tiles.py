"""The kernels for AMX, whose instructions the harness emulates (tests/harness/tiles.h): the machine code that
the library holds, on the panels that it packs, against the reference."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import layer_cases
import pytest
import torch
from harness import build
from harness.kernels import Kernels
from layer_cases import Case
from selection import thorough

from fastrnn._ops import library

BF16 = torch.bfloat16
HERE = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


@pytest.fixture(scope="module")
def kernels():
    if not HERE:
        pytest.skip("kernels for x86-64 on Linux")
    with Kernels([str(build.tiles()), "tiles"]) as running:
        if "amx" not in running.isas:
            pytest.skip("this processor has no AVX512-BF16, beside which the kernels for AMX run")
        running.isa = "amx"
        yield running


def on_a_processor_with_tiles() -> bool:
    return "amx_bf16" in Path("/proc/cpuinfo").read_text()


def cases() -> list[Case]:
    """Of bfloat16, with enough rows to be packed: depths of less than a tile, of whole ones and of odd rests;
    rows of one tile, of several and of a rest; pairs of an odd number of rows."""
    found = [c for c in layer_cases.grid() + layer_cases.masked_grid() if c.dtype == BF16]
    for n, cell in enumerate(layer_cases.CELLS):
        sizes = (5, 7) if cell == "rnn_relu" else (33, 47)
        found += [
            Case(cell, T=3, B=17, IN=sizes[0], H=sizes[1], dtype=BF16, save=("gates", "recompute")[n % 2]),
            Case(cell, T=5, B=5, IN=16, H=6 if cell == "rnn_relu" else 80, D=2, dtype=BF16),
            Case(cell, T=13, B=3, IN=1, H=5, dtype=BF16, bias=False, save="recompute"),
        ]
    return [*found, Case("lstm", T=4, B=20, IN=31, H=70, P=35, dtype=BF16)]


@thorough
def test_layers(kernels):
    """Outputs and every gradient, on one worker and on several, in one chunk and in more."""
    plans = [(1,), (2, 1, 2, 2), (4, 2, 2, 1), (3,)]
    for i, case in enumerate(cases()):
        layer_cases.check(kernels.plan(*plans[i % 4]), case)


@thorough
def test_not_a_number_stays_in_its_row(kernels):
    """A NaN or an infinity in the last, odd feature of one row reaches that row's results and no other's."""
    for value in (torch.nan, torch.inf):
        for cell in ("lstm", "gru", "rnn_tanh"):
            case = Case(cell, T=4, B=5, IN=17, H=19, dtype=BF16)
            p = layer_cases.problem(case)
            p.x[1, 2, 16] = value
            saved = layer_cases.forward(kernels.plan(1), case, p)
            grad_x, grad_h0, _, _ = layer_cases.backward(kernels, case, p, saved)
            others = torch.arange(5) != 2
            for found in (saved[0], grad_x, grad_h0):
                assert found[:, others].isfinite().all()
            if value != value:
                assert saved[0][1:, 2].isnan().all()
                assert grad_x[:, 2].isnan().all()


@thorough
def test_instructions_were_emulated():
    """What the other tests compare came out of tiles, not out of kernels of another kind."""
    if not HERE:
        pytest.skip("kernels for x86-64 on Linux")
    running = Kernels([str(build.tiles()), "tiles"])
    if "amx" not in running.isas:
        pytest.skip("this processor has no AVX512-BF16, beside which the kernels for AMX run")
    running.isa = "amx"
    case = Case("lstm", T=3, B=5, IN=8, H=16, dtype=BF16)
    layer_cases.check(running, case)
    layer_cases.check(running, replace(case, dtype=torch.float32))
    word, count = running.stop().split()
    assert word == "emulated"
    if not on_a_processor_with_tiles():
        assert int(count) > 3 * 3 * 10  # steps, products, instructions of the least of them


def test_only_by_name():
    """Never the default, whatever the processor has; and one without it says what is missing."""
    before = library.cpu_isa()
    assert before != "amx"
    assert "amx" not in library.available_cpu_isas()
    if HERE and on_a_processor_with_tiles():
        try:
            library.set_cpu_isa("amx")
            assert "amx" in library.available_cpu_isas()
            for case in cases():  # by the real instructions
                layer_cases.check(torch.ops.fastrnn, case)
        finally:
            library.set_cpu_isa(before)
        return
    missing = "name: expected a processor with AMX-TILE and AMX-BF16" if HERE else "name: expected"
    with pytest.raises(RuntimeError, match=missing):
        library.set_cpu_isa("amx")
    assert library.cpu_isa() == before


def test_asked_for_where_there_is_none():
    """FASTRNN_CPU_ISA=amx on a processor without it: a warning that says so, and the best other kernels."""
    if HERE and on_a_processor_with_tiles():
        pytest.skip("this processor has AMX: test_only_by_name runs it")
    script = "from fastrnn._ops import library; print(library.cpu_isa())"
    environment = os.environ | {"FASTRNN_CPU_ISA": "amx", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == library.available_cpu_isas()[0]
    assert "FASTRNN_CPU_ISA='amx' cannot run here" in done.stderr
