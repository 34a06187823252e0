"""Planted faults: what the check cases of run_faults make of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from .build import EMU, ROOT, Fault, host, library
from .planted import ALL, HOST
from .run_faults import FOUND


def outcomes(
    request: pytest.FixtureRequest, faults: Mapping[str, Fault], module: str
) -> dict[str | None, dict]:
    """What the cases of ``module`` make of each fault, by name; under None, of the source as it is.

    All of it under the race check, but for faults of the host's. Of the faults those that this session's
    tests of the requesting file ask for.
    """
    of_host = set(faults.values()) <= set(HOST)
    planted = HOST if of_host else ALL
    faulty = host(HOST) if of_host else library("faulty", faults=ALL, race=True)
    tests = [item for item in request.session.items if item.path == request.path]
    asked = {test.callspec.params.get("fault") for test in tests if hasattr(test, "callspec")}
    numbers = {None: 0} | {name: planted.index(fault) + 1 for name, fault in faults.items() if name in asked}
    command = [sys.executable, "-m", "emu.run_faults", str(faulty), module, *map(str, numbers.values())]
    where = {"cwd": EMU.parent, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    # The limit is one for hangs: minutes are right, many more on a machine at work.
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, **where)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(numbers), done.stderr[-2000:]
    return dict(zip(numbers, lines, strict=True))


def assert_found(fault: str, result: dict) -> None:
    """A fault named "race..." by the race check, any other by it, another error or wrong numbers."""
    if fault.startswith("race"):
        assert "RACE" in result.get("error", ""), result
    else:
        assert "error" in result or not result["worst"] <= FOUND, result
