"""torch.export with dynamic T and B, saved, loaded and run where no module of the program exists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CELLS, LAYERS, flat, pair, randn
from tolerances import assert_close
from torch.export import Dim

IN, H = 4, 6
OPTIONS = {"LSTM": {"num_layers": 2, "bidirectional": True, "proj_size": 3}, "GRU": {"batch_first": True}}
RUN = """
import sys, torch, fastrnn
folder = sys.argv[1]
kind = sys.argv[2]
program = (torch.export.load(f"{folder}/program.pt2").module() if kind == "export"
           else torch._inductor.aoti_load_package(f"{folder}/package.pt2"))
for i, x in enumerate(torch.load(f"{folder}/inputs.pt")):
    torch.save(program(x), f"{folder}/output{i}.pt")
"""


def _fresh_process(folder: Path, kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), kind], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _exported(module, x):
    shapes = {0: Dim.DYNAMIC} if x.dim() == 2 else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return torch.export.export(module, (x,), dynamic_shapes=(shapes,))


def _inputs(name: str):
    sizes = ((3,), (7,), (1,)) if name in CELLS else ((5, 3), (9, 2), (1, 1))
    return [randn(*size, IN) for size in sizes]


def _check(module, folder, inputs):
    for i, x in enumerate(inputs):
        got = flat(torch.load(folder / f"output{i}.pt"))
        for a, b in zip(got, flat(module(x)), strict=True):
            assert_close(a, b.detach(), torch.float32)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
@pytest.mark.filterwarnings("error:The tensor attributes")
def test_export(name):
    """The program has dynamic sizes, gives eager mode's numbers at others than it was traced with, T = 1 and
    B = 1 among them, and leaves the module as it was."""
    module, _ = pair(name, IN, H, **OPTIONS.get(name, {}))
    kept = list(getattr(module, "_flat_weights", []))
    inputs = _inputs(name)
    program = _exported(module.eval(), inputs[0]).module()
    for x in inputs:
        for a, b in zip(flat(program(x)), flat(module(x)), strict=True):
            assert_close(a.detach(), b.detach(), torch.float32)
    assert all(a is b for a, b in zip(kept, getattr(module, "_flat_weights", []), strict=True))


def test_saved_and_run_elsewhere(tmp_path):
    """torch.export.save, and load in a fresh process that only imports fastrnn."""
    module, _ = pair("LSTM", IN, H, **OPTIONS["LSTM"])
    inputs = _inputs("LSTM")
    torch.export.save(_exported(module.eval(), inputs[0]), tmp_path / "program.pt2")
    torch.save(inputs, tmp_path / "inputs.pt")
    _fresh_process(tmp_path, "export")
    _check(module, tmp_path, inputs)


def test_aot_inductor_package(tmp_path):
    """A package compiled ahead of time for the CPU, run in a fresh process that only imports fastrnn."""
    module, _ = pair("GRU", IN, H, batch_first=True)
    inputs = _inputs("GRU")
    with torch.no_grad():
        program = _exported(module.eval(), inputs[0])
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"))
    torch.save(inputs, tmp_path / "inputs.pt")
    _fresh_process(tmp_path, "aoti")
    _check(module, tmp_path, inputs)
