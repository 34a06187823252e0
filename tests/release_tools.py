"""The programs of tools/ as modules, for tests of what a release is made with."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: As many as there are for one release: for each CPython and each kind of machine.
NAMES = [
    f"fastrnn-1.2.0-{python}-{python}-manylinux_2_28_{machine}.whl"
    for python in ("cp310", "cp311", "cp312", "cp313", "cp314")
    for machine in ("x86_64", "aarch64")
]


def tool(name: str):
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = os.environ["PATH"]
    sys.path.insert(0, str(ROOT / "tools"))  # they import each other as programs do
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "tools"))
        os.environ["PATH"] = path
    return module


def command(folder: Path, name: str, *answer, status: int = 0) -> str:
    """A command that answers what pythons.ask() asks of a Python."""
    path = folder / name
    path.write_text(
        f"#!/bin/sh\necho 'nothing of that name' >&2\necho '{json.dumps(answer)}'\nexit {status}\n"
    )
    path.chmod(0o755)
    return str(path)
