"""Planted faults: what the check cases of run_faults make of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from .build import EMU, ROOT, Fault, library
from .run_faults import FOUND


def outcomes(faults: Mapping[str, Fault], name: str, module: str, **options) -> dict[str | None, dict]:
    """What the cases of ``module`` make of each fault, by name; under None, of the source as it is.

    All of it under the race check. name, options: of the library that holds them, see build.library().
    """
    faulty = library(name, faults=list(faults.values()), race=True, **options)
    command = [sys.executable, "-m", "emu.run_faults", str(faulty), str(len(faults)), module]
    where = {"cwd": EMU.parent, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **where)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(faults) + 1, done.stderr[-2000:]
    return dict(zip([None, *faults], lines, strict=True))


def assert_found(fault: str, result: dict) -> None:
    """A fault named "race..." by the race check, any other by it, another error or wrong numbers."""
    if fault.startswith("race"):
        assert "RACE" in result.get("error", ""), result
    else:
        assert "error" in result or not result["worst"] <= FOUND, result
